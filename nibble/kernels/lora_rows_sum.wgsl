// h[t, c] = f16(factor * sum over a segment's parts of sums[part, t, c]): the second pass of the products of rows
// (lora_matrix.h). `width` columns of h belong to each segment; without parts they are zero. SHARES invocations do 8 columns of
// a row: each adds up every SHARES-th part, in order, and the first of them what these come to.

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

const VECTORS = 32u;  // of a workgroup

struct Eight {
  low: vec4<f32>,
  high: vec4<f32>,
}

var<workgroup> shares: array<Eight, VECTORS * SHARES>;

@compute @workgroup_size(VECTORS * SHARES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let asked = linear_workgroup(group, groups) * VECTORS + lane % VECTORS;
  let at = min(asked, params.count - 1u);
  let row = at / params.row_vectors;
  let column = at % params.row_vectors * 8u;
  let segment = column / params.width;
  let part_size = params.padded_rows * params.padded_width / 4u;
  let source = (row * params.padded_width + column - segment * params.width) / 4u;
  let end = params.starts[segment + 1u];
  var sum = Eight();
  var part = params.starts[segment] + lane / VECTORS;
  // Four at a time, so that their loads overlap.
  for (; part + 3u * SHARES < end; part += 4u * SHARES) {
    const step = SHARES;
    let i = part * part_size + source;
    let j = i + step * part_size;
    let k = j + step * part_size;
    let l = k + step * part_size;
    let first = Eight(sums[i], sums[i + 1u]);
    let second = Eight(sums[j], sums[j + 1u]);
    let third = Eight(sums[k], sums[k + 1u]);
    let fourth = Eight(sums[l], sums[l + 1u]);
    sum.low = sum.low + first.low + second.low + third.low + fourth.low;
    sum.high = sum.high + first.high + second.high + third.high + fourth.high;
  }
  for (; part < end; part += SHARES) {
    sum.low += sums[part * part_size + source];
    sum.high += sums[part * part_size + source + 1u];
  }
  shares[lane] = sum;
  workgroupBarrier();
  if (lane >= VECTORS || asked >= params.count) {
    return;
  }
  for (var share = 1u; share < SHARES; share++) {
    sum.low += shares[share * VECTORS + lane].low;
    sum.high += shares[share * VECTORS + lane].high;
  }
  h[at] = vec4<u32>(bitcast<vec2<u32>>(vec4<f16>(sum.low * params.factor)), bitcast<vec2<u32>>(vec4<f16>(sum.high * params.factor)));
}
