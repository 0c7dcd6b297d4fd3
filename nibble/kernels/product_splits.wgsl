// Adds up the partial sums of a product's blocks whose inner dimension was split, in their order, and stores them as blocks that
// were not (product_matrix.h), with r = sums * scale * x_scale[row]: `write` y = r, `accumulate` y += r, `plus` y = base + r,
// `rows_in_f16` y = f16(sums * 2^-6), whose rows' scales stand already. A block's sums lie together, row by row; all blocks'
// first splits come first. An invocation does four neighbouring columns. Y is the type of y's elements.

struct Params {
  rows: u32,
  vectors: u32,  // of a row, of four columns
  whole: u32,    // blocks before the first one that was split
  splits: u32,
  blocks: vec2<u32>,  // down and across
  band: u32,
  block_rows: u32,
  block_vectors: u32,
  y_vectors: u32,  // from one row of y to the next
  y_first: u32,    // vector
  scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> partial: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> x_scale: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<Y>>;
@group(0) @binding(4) var<storage, read> base: array<vec4<f32>>;

struct Place {
  row: u32,
  y: u32,
  exists: bool,
}

fn split_blocks() -> u32 {
  return params.blocks.x * params.blocks.y - params.whole;
}

fn sums_of(at: u32) -> vec4<f32> {
  let size = split_blocks() * params.block_rows * params.block_vectors;
  var sums = partial[at];
  for (var split = 1u; split < params.splits; split++) {
    sums += partial[split * size + at];
  }
  return sums;
}

fn place_of(at: u32) -> Place {
  let size = params.block_rows * params.block_vectors;
  let number = at / size;
  let block = block_at(params.whole + number, params.blocks, params.band);
  let row = block.x * params.block_rows + at % size / params.block_vectors;
  let column = block.y * params.block_vectors + at % params.block_vectors;
  let exists = number < split_blocks() && row < params.rows && column < params.vectors;
  return Place(row, row * params.y_vectors + params.y_first + column, exists);
}

@compute @workgroup_size(256)
fn write(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
         @builtin(local_invocation_index) lane: u32) {
  let at = linear_workgroup(group, groups) * 256u + lane;
  let place = place_of(at);
  if (place.exists) {
    y[place.y] = vec4<Y>(sums_of(at) * (params.scale * x_scale[place.row]));
  }
}

@compute @workgroup_size(256)
fn accumulate(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
              @builtin(local_invocation_index) lane: u32) {
  let at = linear_workgroup(group, groups) * 256u + lane;
  let place = place_of(at);
  if (place.exists) {
    y[place.y] += vec4<Y>(sums_of(at) * (params.scale * x_scale[place.row]));
  }
}

@compute @workgroup_size(256)
fn plus(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let at = linear_workgroup(group, groups) * 256u + lane;
  let place = place_of(at);
  if (place.exists) {
    y[place.y] = vec4<Y>(base[place.y] + sums_of(at) * (params.scale * x_scale[place.row]));
  }
}

@compute @workgroup_size(256)
fn rows_in_f16(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
               @builtin(local_invocation_index) lane: u32) {
  let at = linear_workgroup(group, groups) * 256u + lane;
  let place = place_of(at);
  if (place.exists) {
    y[place.y] = vec4<Y>(sums_of(at) * 0.015625);
  }
}
