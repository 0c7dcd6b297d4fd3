// d_rows[i] += sum over t with tokens[t] = ids[i] of dx[t], in the order of t. One workgroup a row i and WORKGROUP vectors of its
// columns; each lane adds up one.

struct Params {
  rows: u32,
  columns: u32,
  tokens: u32,
  pieces: u32,  // workgroups of a row
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tokens: array<u32>;
@group(0) @binding(2) var<storage, read> dx: array<Wide>;
@group(0) @binding(3) var<storage, read> ids: array<u32>;
@group(0) @binding(4) var<storage, read_write> d_rows: array<Wide>;

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
  for (var t = 0u; t < params.tokens; t++) {
    if (tokens[t] == id) {
      sum += dx[t * wides + i];
    }
  }
  d_rows[row * wides + i] = sum;
}
