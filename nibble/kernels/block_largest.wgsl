// The largest score of each block of each row, a workgroup a block, and empties the rows' lists. Prelude: WORKGROUP, a power of two;
// FOUND, words of a row's list.

struct Params {
  scores: u32,  // of a row
  blocks: u32,
  block: u32,  // scores of one
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> scores: array<u32>;          // the bits of f32s
@group(0) @binding(2) var<storage, read_write> largest: array<i32>;   // in their order (lib/score_order.wgsl)
@group(0) @binding(3) var<storage, read_write> found: array<u32>;

var<workgroup> shares: array<i32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let begin = group.x * params.block;
  let end = min(begin + params.block, params.scores);
  var most = LEAST;
  for (var i = begin + lane; i < end; i += WORKGROUP) {
    most = max(most, ordered(scores[group.y * params.scores + i]));
  }
  shares[lane] = most;
  for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (lane < half) {
      shares[lane] = max(shares[lane], shares[lane + half]);
    }
  }
  if (lane == 0u) {
    largest[group.y * params.blocks + group.x] = shares[0];
    if (group.x == 0u) {
      found[group.y * FOUND] = 0u;
    }
  }
}
