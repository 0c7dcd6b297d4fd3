// y = a * x + b * y, element by element, CHUNK elements a workgroup.

struct Params {
  count: u32,
  a: f32,
  b: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let begin = linear_workgroup(group, groups) * CHUNK;
  for (var k = lane; k < CHUNK && begin + k < params.count; k += LANES) {
    y[begin + k] = params.a * x[begin + k] + params.b * y[begin + k];
  }
}
