// NT products of few rows with the NF4 weights of their experts (expert_product.h), where reading these is what counts: y(row, n) is a
// dot product by LANES lanes, a workgroup has OUTPUTS of them of one row. The binding of w begins at expert first_expert and has
// bound_experts of them; rows of others are left to other dispatches. BY_TOKEN: x has a row a token of PER_TOKEN slots.

struct Params {
  outputs: u32,
  inputs: u32,
  first_expert: u32,
  bound_experts: u32,
  scaling: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> w: array<u32>;
@group(0) @binding(3) var<storage, read> absmax: array<f32>;
@group(0) @binding(4) var<storage, read> expert: array<u32>;
@group(0) @binding(5) var<storage, read> slot_of_row: array<u32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

const WORKGROUP = LANES * OUTPUTS;
var<workgroup> parts: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  for (var i = lane; i < 16u; i += WORKGROUP) {
    nf4_codes[i] = NF4_CODES[i];
  }
  workgroupBarrier();
  let row = group.y;
  let slot = slot_of_row[row];
  let e = expert[slot];
  if (e < params.first_expert || e - params.first_expert >= params.bound_experts) {
    return;
  }
  let source = select(row, slot / PER_TOKEN, BY_TOKEN);
  let n = group.x * OUTPUTS + lane / LANES;
  let words = params.inputs / 8u;
  var sum = 0.0;
  if (n < params.outputs) {
    let first = ((e - params.first_expert) * params.outputs + n) * words;
    for (var i = lane % LANES; i < words; i += LANES) {
      let word = w[first + i];
      let at = 2u * (source * words + i);
      sum += (dot(four_codes(word), x[at]) + dot(four_codes(word >> 16u), x[at + 1u])) * absmax[(first + i) / 8u];
    }
  }
  parts[lane] = sum;
  workgroupBarrier();
  if (lane % LANES != 0u || n >= params.outputs) {
    return;
  }
  for (var i = 1u; i < LANES; i++) {
    sum += parts[lane + i];
  }
  let at = row * params.outputs + n;
  y[at] = select(0.0, y[at], ACCUMULATE) + params.scaling * sum;
}
