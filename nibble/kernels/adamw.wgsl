// AdamW by the rule of lib/adamw.wgsl, each element by itself, CHUNK elements a workgroup.

@group(0) @binding(2) var<storage, read> gradients: array<f32>;
@group(0) @binding(3) var<storage, read_write> weights: array<f32>;
@group(0) @binding(4) var<storage, read_write> first_moment: array<f32>;
@group(0) @binding(5) var<storage, read_write> second_moment: array<f32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  if (!norm_is_finite()) {
    return;
  }
  let begin = linear_workgroup(group, groups) * CHUNK;
  for (var k = lane; k < CHUNK && begin + k < params.count; k += LANES) {
    let i = begin + k;
    let g = clipped(gradients[i]);
    let m = next_first_moment(first_moment[i], g);
    let v = next_second_moment(second_moment[i], g);
    first_moment[i] = m;
    second_moment[i] = v;
    weights[i] = next_weight(weights[i], m, v);
  }
}
