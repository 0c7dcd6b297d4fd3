// delta[h, i] = o_i . d_o_i of each query and head: the part of the softmax's backward that all keys share. An
// invocation a (query, head), in grids of lib/grid.wgsl.
// Prelude: HEAD_DIM, WORKGROUP.

@group(0) @binding(1) var<storage, read> o: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> d_o: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> delta: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) invocation: u32) {
  let index = linear_workgroup(group, groups) * WORKGROUP + invocation;
  let query = params.first_token + index / params.heads;
  if (query >= params.last_token) {
    return;
  }
  let head = index % params.heads;
  let row = token_row(query, head);
  var sum = 0.0;
  for (var c = 0u; c < VECTORS; c++) {
    sum += dot(o[row + c], d_o[row + c]);
  }
  delta[query_entry(query, head)] = sum;
}
