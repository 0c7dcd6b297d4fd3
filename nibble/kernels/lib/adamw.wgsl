// The rule of AdamW for one element, in the order of torch.optim.AdamW, with g = gradient * factor of clipping:
//   p *= decay; m += (1 - beta1) (g - m); v = beta2 v + (1 - beta2) g^2;
//   p -= step_size * m / (sqrt(v) / root_correction2 + epsilon)
// A norm that is not finite changes nothing.

struct Params {
  count: u32,              // elements
  decay: f32,              // 1 - learning rate * weight decay
  rest1: f32,              // 1 - beta1
  beta2: f32,
  rest2: f32,              // 1 - beta2
  step_size: f32,          // learning rate / (1 - beta1^step)
  root_correction2: f32,   // sqrt(1 - beta2^step)
  epsilon: f32,
  skipped: u32,            // of kernels in blocks, else 0: values before that of the first block, where each block has one
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> norm_and_factor: array<u32>;

fn norm_is_finite() -> bool {
  return (norm_and_factor[0] & 0x7f800000u) != 0x7f800000u;
}

fn clipped(gradient: f32) -> f32 {
  return gradient * bitcast<f32>(norm_and_factor[1]);
}

fn next_first_moment(m: f32, g: f32) -> f32 {
  return m + params.rest1 * (g - m);
}

fn next_second_moment(v: f32, g: f32) -> f32 {
  return params.beta2 * v + params.rest2 * g * g;
}

fn next_weight(weight: f32, m: f32, v: f32) -> f32 {
  return weight * params.decay - params.step_size * (m / (sqrt(v) / params.root_correction2 + params.epsilon));
}
