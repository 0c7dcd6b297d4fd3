// Adds up the partial sums of a product whose inner dimension was split, in their order, and stores them as the product
// without splits would (product_matrix.h), with r = sums * scale * x_scale[row]: `write` y = r, `accumulate` y += r, `plus`
// y = base + r, `rows_in_f16` y = f16(sums * 2^-6) and y_scale[row] = scale * x_scale[row] * 2^6. An invocation does four
// neighbouring columns. Y is the type of y's elements.

struct Params {
  rows: u32,
  vectors: u32,  // of a row, of four columns
  splits: u32,
  y_vectors: u32,  // from one row of y to the next
  y_first: u32,    // vector
  scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> part: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> x_scale: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<Y>>;
@group(0) @binding(4) var<storage, read> base: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y_scale: array<f32>;

fn sums_of(at: u32) -> vec4<f32> {
  var sums = part[at];
  for (var split = 1u; split < params.splits; split++) {
    sums += part[split * params.rows * params.vectors + at];
  }
  return sums;
}

struct Place {
  row: u32,
  column: u32,
  y: u32,
  exists: bool,
}

fn place_of(at: u32) -> Place {
  let row = at / params.vectors;
  let column = at - row * params.vectors;
  return Place(row, column, row * params.y_vectors + params.y_first + column, row < params.rows);
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
  if (!place.exists) {
    return;
  }
  y[place.y] = vec4<Y>(sums_of(at) * 0.015625);
  if (place.column == 0u && params.y_first == 0u) {
    y_scale[place.row] = x_scale[place.row] * params.scale * 64.0;
  }
}
