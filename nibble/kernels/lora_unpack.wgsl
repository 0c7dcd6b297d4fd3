// values[t, c] = hidden[t, first + c] * scale[t] * factor in f32, for the `rank` columns of one projection. One invocation
// does one element.

struct Params {
  count: u32,
  rank: u32,
  first: u32,
  width: u32,  // of hidden
  factor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> hidden: array<f16>;
@group(0) @binding(2) var<storage, read> scale: array<f32>;
@group(0) @binding(3) var<storage, read_write> values: array<f32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let at = linear_workgroup(group, groups) * LANES + lane;
  if (at >= params.count) {
    return;
  }
  let row = at / params.rank;
  values[at] = f32(hidden[row * params.width + params.first + at % params.rank]) * scale[row] * params.factor;
}
