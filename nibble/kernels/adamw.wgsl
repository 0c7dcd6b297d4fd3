// AdamW, each element by itself, CHUNK elements a workgroup; in the order of torch.optim.AdamW:
//   g = gradient * factor; p *= decay; m += (1 - beta1) (g - m); v = beta2 v + (1 - beta2) g^2;
//   p -= step_size * m / (sqrt(v) / root_correction2 + epsilon)
// A norm that is not finite changes nothing.

struct Params {
  count: u32,
  decay: f32,              // 1 - learning rate * weight decay
  rest1: f32,              // 1 - beta1
  beta2: f32,
  rest2: f32,              // 1 - beta2
  step_size: f32,          // learning rate / (1 - beta1^step)
  root_correction2: f32,   // sqrt(1 - beta2^step)
  epsilon: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> norm_and_factor: array<u32>;
@group(0) @binding(2) var<storage, read> gradients: array<f32>;
@group(0) @binding(3) var<storage, read_write> weights: array<f32>;
@group(0) @binding(4) var<storage, read_write> first_moment: array<f32>;
@group(0) @binding(5) var<storage, read_write> second_moment: array<f32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  if ((norm_and_factor[0] & 0x7f800000u) == 0x7f800000u) {
    return;
  }
  let factor = bitcast<f32>(norm_and_factor[1]);
  let begin = linear_workgroup(group, groups) * CHUNK;
  for (var k = lane; k < CHUNK && begin + k < params.count; k += LANES) {
    let i = begin + k;
    let g = gradients[i] * factor;
    let m = first_moment[i] + params.rest1 * (g - first_moment[i]);
    let v = params.beta2 * second_moment[i] + params.rest2 * g * g;
    first_moment[i] = m;
    second_moment[i] = v;
    weights[i] = weights[i] * params.decay - params.step_size * (m / (sqrt(v) / params.root_correction2 + params.epsilon));
  }
}
