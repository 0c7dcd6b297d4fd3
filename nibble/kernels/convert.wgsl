// y[i] = value(x[i]) * factor for x in f32, f16 or bf16 (two in a word, the first in the low half). CHUNK elements a
// workgroup; a lane takes two neighbours at once.

struct Params {
  count: u32,
  factor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<Data>;

const F32 = 0u;
const F16 = 1u;
const BF16 = 2u;

fn pair_at(pair: u32) -> vec2<f32> {
  if (SOURCE == BF16) {
    return vec2(bitcast<f32>(x[pair] << 16u), bitcast<f32>(x[pair] & 0xffff0000u));
  }
  if (SOURCE == F16) {
    return unpack2x16float(x[pair]);
  }
  var second = 0u;
  if (2u * pair + 1u < params.count) {
    second = x[2u * pair + 1u];
  }
  return vec2(bitcast<f32>(x[2u * pair]), bitcast<f32>(second));
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let first_pair = linear_workgroup(group, groups) * (CHUNK / 2u);
  for (var k = lane; k < CHUNK / 2u && 2u * (first_pair + k) < params.count; k += LANES) {
    let i = 2u * (first_pair + k);
    let values = pair_at(first_pair + k) * params.factor;
    y[i] = Data(values.x);
    if (i + 1u < params.count) {
      y[i + 1u] = Data(values.y);
    }
  }
}
