// x[t][c] += uniform[-1, 1) * alpha / sqrt(segment length * columns), one workgroup a row.

struct Params {
  rows: u32,
  columns: u32,
  first_row: u32,  // of the bindings, in the token stream
  seed: u32,
  alpha: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> segment_begin: array<u32>;
@group(0) @binding(2) var<storage, read> segment_end: array<u32>;
@group(0) @binding(3) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let length = segment_end[row] - segment_begin[row];
  let size = params.alpha / sqrt(f32(length) * f32(params.columns));
  for (var i = lane; i < params.columns; i += WORKGROUP) {
    let word = random4(vec4(i, params.first_row + row, params.seed, 0x6e656674u)).x;
    x[row * params.columns + i] += size * (f32(word >> 8u) * 0x1p-23 - 1.0);
  }
}
