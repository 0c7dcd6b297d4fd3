// The global norm of gradients and the factor that clips it, in two stages of fixed order.
// `squares`: workgroup g of PARTIALS writes the sum of squares of its part of x to partials[first_partial + g].
// `finish`, one workgroup: norm = sqrt(sum of the partials), factor = min(1, max_norm / (norm + 1e-6)), or 1 for max_norm 0.
// Where KEEPS, a norm that was not finite before stays.

struct Params {
  count: u32,          // elements of x, or partials
  first_partial: u32,
  max_norm: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> partials: array<f32>;
@group(0) @binding(2) var<storage, read_write> norm_and_factor: array<f32>;

fn term(i: u32) -> f32 {
  let value = x[i];
  return select(value, value * value, SQUARES);
}

@compute @workgroup_size(WORKGROUP)
fn squares(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let share = params.count / PARTIALS + 1u;
  let begin = min(group.x * share, params.count);
  let total = block_sum(lane, begin, min(begin + share, params.count));
  if (lane == 0u) {
    partials[params.first_partial + group.x] = total;
  }
}

@compute @workgroup_size(WORKGROUP)
fn finish(@builtin(local_invocation_index) lane: u32) {
  let norm = sqrt(block_sum(lane, 0u, params.count));
  let kept = KEEPS && (bitcast<u32>(norm_and_factor[0]) & 0x7f800000u) == 0x7f800000u;
  if (lane == 0u && !kept) {
    norm_and_factor[0] = norm;
    norm_and_factor[1] = select(min(1.0, params.max_norm / (norm + 1e-6)), 1.0, params.max_norm == 0.0);
  }
}
