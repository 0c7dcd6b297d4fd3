// h[t, c] = f16(factor * sum over a segment's parts of sums[part, t, c]), in the order of the parts: the second pass of
// the products of rows (lora_matrix.h). `width` columns of h belong to each segment; without parts they are zero. One
// invocation does 8 columns of a row.

struct Params {
  starts: vec4<u32>,  // first part of each segment, and the end of the last
  count: u32,         // vectors of 8 of h
  row_vectors: u32,   // of a row of h
  width: u32,
  padded_width: u32,  // of a row of sums
  padded_rows: u32,
  factor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> sums: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> h: array<vec4<u32>>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let at = linear_workgroup(group, groups) * 64u + lane;
  if (at >= params.count) {
    return;
  }
  let row = at / params.row_vectors;
  let column = at % params.row_vectors * 8u;
  let segment = column / params.width;
  let part_size = params.padded_rows * params.padded_width / 4u;
  let source = (row * params.padded_width + column - segment * params.width) / 4u;
  let end = params.starts[segment + 1u];
  var low = vec4<f32>();
  var high = vec4<f32>();
  var part = params.starts[segment];
  // Four at a time, so that their loads overlap.
  for (; part + 4u <= end; part += 4u) {
    let i = part * part_size + source;
    let j = i + 2u * part_size;
    let low0 = sums[i];
    let high0 = sums[i + 1u];
    let low1 = sums[i + part_size];
    let high1 = sums[i + part_size + 1u];
    let low2 = sums[j];
    let high2 = sums[j + 1u];
    let low3 = sums[j + part_size];
    let high3 = sums[j + part_size + 1u];
    low = low + low0 + low1 + low2 + low3;
    high = high + high0 + high1 + high2 + high3;
  }
  for (; part < end; part++) {
    low += sums[part * part_size + source];
    high += sums[part * part_size + source + 1u];
  }
  let first = bitcast<vec2<u32>>(vec4<f16>(low * params.factor));
  h[at] = vec4<u32>(first, bitcast<vec2<u32>>(vec4<f16>(high * params.factor)));
}
