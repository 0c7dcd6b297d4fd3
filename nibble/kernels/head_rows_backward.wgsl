// d_rows[i] += sum over r of d_logits[r, ids[i]] * normed[r] with both rows' scales, in the order of r. One workgroup a row i and
// WORKGROUP vectors of its columns; each lane adds up one.

struct Params {
  rows: u32,
  columns: u32,
  labels: u32,
  vocabulary: u32,
  pieces: u32,  // workgroups of a row
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> d_logits: array<Element>;
@group(0) @binding(2) var<storage, read> normed: array<Data>;
@group(0) @binding(3) var<storage, read> ids: array<u32>;
@group(0) @binding(4) var<storage, read_write> d_rows: array<Wide>;
@group(0) @binding(5) var<storage, read> d_logits_scale: array<f32>;  // of operands in f32 any tensor, which is not read
@group(0) @binding(6) var<storage, read> normed_scale: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let number = linear_workgroup(group, groups);
  let row = number / params.pieces;
  let wides = params.columns / WIDTH;
  let i = (number % params.pieces) * WORKGROUP + lane;
  if (row >= params.rows || i >= wides) {
    return;
  }
  let id = ids[row];
  var sum = d_rows[row * wides + i];
  for (var r = 0u; r < params.labels; r++) {
    var factor = f32(d_logits[r * params.vocabulary + id]);
    if (SCALED) {
      factor *= d_logits_scale[r] * normed_scale[r];
    }
    sum += factor * Wide(normed[r * wides + i]);
  }
  d_rows[row * wides + i] = sum;
}
