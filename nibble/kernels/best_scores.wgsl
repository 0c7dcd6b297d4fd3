// Lists the scores of each row that reach the `count`-th largest of its blocks' largest, in any order: `count` of them at least. A
// workgroup a block; each finds the bound for itself. Prelude: WORKGROUP; MOST_BLOCKS; ROOM, scores of a list; FOUND, its words.

struct Params {
  scores: u32,  // of a row
  blocks: u32,
  block: u32,  // scores of one
  count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> scores: array<u32>;
@group(0) @binding(2) var<storage, read> largest: array<i32>;
// Of each row how many there are, which may be more than have room, the bound, whether all of the row are finite, and pairs of index and score.
@group(0) @binding(3) var<storage, read_write> found: array<atomic<u32>>;

var<workgroup> keys: array<i32, MOST_BLOCKS>;
var<workgroup> bound: atomic<i32>;
var<workgroup> most: atomic<i32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  for (var b = lane; b < params.blocks; b += WORKGROUP) {
    keys[b] = largest[group.y * params.blocks + b];
  }
  if (lane == 0u) {
    atomicStore(&bound, LEAST);
    atomicStore(&most, LEAST);
  }
  workgroupBarrier();
  for (var b = lane; b < params.blocks; b += WORKGROUP) {
    var above = 0u;
    var equal = 0u;
    for (var other = 0u; other < params.blocks; other++) {
      above += u32(keys[other] > keys[b]);
      equal += u32(keys[other] == keys[b]);
    }
    // All that store one of these have the same.
    if (above < params.count && params.count <= above + equal) {
      atomicStore(&bound, keys[b]);
    }
    if (above == 0u) {
      atomicStore(&most, keys[b]);
    }
  }
  workgroupBarrier();
  let least = atomicLoad(&bound);
  let list = group.y * FOUND;
  if (group.x == 0u && lane == 0u) {
    atomicStore(&found[list + 1u], bits_of(least));
    atomicStore(&found[list + 2u], u32(atomicLoad(&most) != NOT_FINITE));
  }
  if (keys[group.x] < least) {
    return;
  }
  let end = min((group.x + 1u) * params.block, params.scores);
  for (var i = group.x * params.block + lane; i < end; i += WORKGROUP) {
    let bits = scores[group.y * params.scores + i];
    if (ordered(bits) >= least) {
      let place = atomicAdd(&found[list], 1u);
      if (place < ROOM) {
        atomicStore(&found[list + 4u + 2u * place], i);
        atomicStore(&found[list + 5u + 2u * place], bits);
      }
    }
  }
}
