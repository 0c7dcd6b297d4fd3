// The token that a sampler takes from the best scores of a row (choose_token.h), a workgroup a row: of those that top-k, top-p and min-p
// leave, by their ids, the first whose weights up to it exceed the draw's share of all. Prelude: WORKGROUP; HEADER, ROOM, FOUND: words
// before a list's pairs, pairs that there is room for, and words of all.

struct Params {
  temperature: f32,
  top_k: u32,
  top_p: f32,
  min_p: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> draws: array<f32>;
@group(0) @binding(2) var<storage, read_write> found: array<u32>;
@group(0) @binding(3) var<storage, read_write> tokens: array<u32>;

const NONE = 0xffffffffu;

var<workgroup> ids: array<u32, ROOM>;
var<workgroup> keys: array<i32, ROOM>;
var<workgroup> weights: array<f32, ROOM>;
var<workgroup> kept: array<f32, ROOM>;
var<workgroup> best: u32;   // its place in the list
var<workgroup> least: i32;  // key that top-k leaves
var<workgroup> chosen: atomic<u32>;
var<workgroup> last: atomic<u32>;

fn better(a: u32, b: u32) -> bool {
  return keys[a] > keys[b] || (keys[a] == keys[b] && ids[a] < ids[b]);
}

fn score(key: i32) -> f32 {
  return bitcast<f32>(bits_of(key));
}

// Of which one has each rank, so each variable has one writer.
fn rank_all(count: u32, lane: u32) {
  for (var i = lane; i < count; i += WORKGROUP) {
    var rank = 0u;
    for (var other = 0u; other < count; other++) {
      rank += u32(better(other, i));
    }
    if (rank == 0u) {
      best = i;
    }
    if (rank + 1u == params.top_k) {
      least = keys[i];
    }
  }
}

fn keep_by_p(count: u32, lane: u32) {
  for (var i = lane; i < count; i += WORKGROUP) {
    var total = 0.0;
    var before = 0.0;
    for (var other = 0u; other < count; other++) {
      total += weights[other];
      before += select(0.0, weights[other], better(other, i));
    }
    kept[i] = select(0.0, weights[i], before < params.top_p * total && weights[i] >= params.min_p);
  }
}

fn draw_one(count: u32, lane: u32, draw: f32) {
  for (var i = lane; i < count; i += WORKGROUP) {
    var total = 0.0;
    var reached = 0.0;
    for (var other = 0u; other < count; other++) {
      total += kept[other];
      reached += select(0.0, kept[other], ids[other] <= ids[i]);
    }
    if (kept[i] > 0.0) {
      atomicMax(&last, ids[i]);
      if (draw * total < reached) {
        atomicMin(&chosen, ids[i]);
      }
    }
  }
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let list = group.x * FOUND;
  let count = min(found[list], ROOM);
  for (var i = lane; i < count; i += WORKGROUP) {
    ids[i] = found[list + HEADER + 2u * i];
    keys[i] = ordered(found[list + HEADER + 2u * i + 1u]);
  }
  if (lane == 0u) {
    best = 0u;
    least = LEAST;
  }
  workgroupBarrier();
  rank_all(count, lane);
  workgroupBarrier();
  if (params.temperature == 0.0) {
    if (lane == 0u) {
      tokens[group.x] = ids[best];
      found[list + HEADER - 1u] = ids[best];
    }
    return;
  }
  if (lane == 0u) {
    atomicStore(&chosen, NONE);
    atomicStore(&last, ids[best]);
  }
  let largest = score(keys[best]);
  for (var i = lane; i < count; i += WORKGROUP) {
    weights[i] = select(0.0, exp((score(keys[i]) - largest) / params.temperature), keys[i] >= least);
  }
  workgroupBarrier();
  keep_by_p(count, lane);
  workgroupBarrier();
  draw_one(count, lane, draws[group.x]);
  workgroupBarrier();
  if (lane == 0u) {
    let first = atomicLoad(&chosen);
    let token = select(first, atomicLoad(&last), first == NONE);
    tokens[group.x] = token;
    found[list + HEADER - 1u] = token;
  }
}
