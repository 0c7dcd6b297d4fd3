// sum[i] = the sum of parts[p * count + i] over p < PARTS, in their order; of both outputs of attention's key gradients.
// Prelude: PARTS, WORKGROUP.

struct Params {
  count: u32,  // vectors of 4 of an output
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parts: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> sum: array<vec4<f32>>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) invocation: u32) {
  let i = linear_workgroup(group, groups) * WORKGROUP + invocation;
  if (i >= params.count) {
    return;
  }
  var total = parts[i];
  for (var p = 1u; p < PARTS; p++) {
    total += parts[p * params.count + i];
  }
  sum[i] = total;
}
