// total[slot] = or += the sum of x, of f32 or, with `count`, of u32 as u32. One workgroup, in a fixed order.

struct Params {
  count: u32,
  slot: u32,
  accumulate: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> total: array<u32>;

fn term(i: u32) -> f32 {
  return bitcast<f32>(x[i]);
}

@compute @workgroup_size(WORKGROUP)
fn sum(@builtin(local_invocation_index) lane: u32) {
  var result = block_sum(lane, 0u, params.count);
  if (lane == 0u) {
    if (params.accumulate != 0u) {
      result += bitcast<f32>(total[params.slot]);
    }
    total[params.slot] = bitcast<u32>(result);
  }
}

@compute @workgroup_size(WORKGROUP)
fn count(@builtin(local_invocation_index) lane: u32) {
  var part = 0u;
  for (var i = lane; i < params.count; i += WORKGROUP) {
    part += x[i];
  }
  lane_words[lane] = part;
  workgroupBarrier();
  if (lane == 0u) {
    for (var i = 1u; i < WORKGROUP; i++) {
      part += lane_words[i];
    }
    if (params.accumulate != 0u) {
      part += total[params.slot];
    }
    total[params.slot] = part;
  }
}
