// y[i] += sum over z of part[z, i], in the order of z, for i < count: the second pass of product_tn.wgsl.
// One invocation an element.
struct Params {
  count: u32,
  parts: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> part: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let i = linear_workgroup(group, groups) * 64u + lane;
  if (i >= params.count) {
    return;
  }
  var sum = 0.0;
  for (var z = 0u; z < params.parts; z++) {
    sum += part[z * params.count + i];
  }
  y[i] += sum;
}
