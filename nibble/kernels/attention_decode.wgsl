// Attention of few queries and many keys. A workgroup takes a query's HEADS heads that share a key head, and a part of its
// keys, so that these are read once, a TILE at a time: SHARES neighbours compute the scores of one key, invocation (head, key)
// its weights, and invocation (slot, column) adds the values of every SLOTS-th key to vector `column` of each head's result;
// the slots are added in their order at the end. Formulas, layouts: attention.h.
// SPLIT: a part leaves the largest score, the sum of weights against it and the weighted sum of values
// (attention_decode_parts.wgsl); else there is one part, and the result is written.
//
// Prelude: HEAD_DIM; HEADS, at most 4, a divisor of the group; SPLIT.

@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> key_begin: array<u32>;
@group(0) @binding(5) var<storage, read> key_end: array<u32>;
@group(0) @binding(6) var<storage, read_write> o: array<vec4<f32>>;  // SPLIT: weighted sums of parts
@group(0) @binding(7) var<storage, read_write> lse: array<f32>;      // SPLIT: of each part the largest score and the sum of weights

const WORKGROUP = 128u;
const TILE = 32u;
const SHARES = WORKGROUP / TILE;
const SCORES = HEADS * TILE;
const DOTS = SCORES + 8u;  // so that different shares of a key meet different banks
const SLOTS = WORKGROUP / VECTORS;
const VALUES = (TILE + SLOTS - 1u) / SLOTS;  // of an invocation

var<workgroup> dots: array<f32, SHARES * DOTS>;
var<workgroup> scores: array<f32, SCORES>;            // at the end the sums of weights
var<workgroup> weights: array<f32, SCORES>;
var<workgroup> shrinks: array<f32, HEADS>;            // what earlier weights are multiplied by, at the end the largest scores
var<workgroup> vectors: array<vec4<f32>, WORKGROUP>;  // one head's slots

// Shares of the products of a key, whose share begins at vector `key_at`, with the heads of the query.
fn put_dots(query: u32, first_head: u32, key_at: u32, invocation: u32) {
  let share = invocation % SHARES;
  var sums: array<f32, HEADS>;
  for (var c = 0u; c < VECTORS / SHARES; c++) {
    let key = k[key_at + SHARES * c];
    for (var h = 0u; h < HEADS; h++) {
      sums[h] += dot(key, q[((first_head + h) * params.tokens + query) * VECTORS + SHARES * c + share]);
    }
  }
  for (var h = 0u; h < HEADS; h++) {
    dots[share * DOTS + h * TILE + invocation / SHARES] = sums[h];
  }
}

fn score_of(invocation: u32) -> f32 {
  var sum = 0.0;
  for (var s = 0u; s < SHARES; s++) {
    sum += dots[s * DOTS + invocation];
  }
  return sum * params.scale;
}

// What an invocation that weighs knows of its head.
struct Running {
  largest: f32,
  total: f32,  // of its own weights
}

// Weights of a tile's keys from their products, of which `count` are there; 3 barriers.
fn weigh(running: ptr<function, Running>, count: u32, invocation: u32) {
  let weighs = invocation < SCORES;
  let head = invocation / TILE;
  let key = invocation % TILE;
  var score = f32(LOWEST);
  workgroupBarrier();
  if (weighs) {
    if (key < count) {
      score = score_of(invocation);
    }
    scores[invocation] = score;
  }
  workgroupBarrier();
  if (weighs) {
    let before = (*running).largest;
    var largest = before;
    for (var i = 0u; i < TILE; i++) {
      largest = max(largest, scores[head * TILE + i]);
    }
    let shrink = exp(before - largest);
    let weight = exp(score - largest);
    weights[invocation] = weight;
    *running = Running(largest, (*running).total * shrink + weight);
    if (key == 0u) {
      shrinks[head] = shrink;
    }
  }
  workgroupBarrier();
}

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  let query = params.first_token + group.x;
  let first_head = group.y * HEADS;
  let keys = key_rows(first_head);
  let begin = key_begin[query] + group.z * params.part_keys;
  let end = min(key_end[query], begin + params.part_keys);
  let slot = invocation / VECTORS;
  let column = invocation % VECTORS;
  var running = Running(LOWEST, 0.0);
  var sums: array<vec4<f32>, HEADS>;
  for (var first = begin; first < end; first += TILE) {
    // On their way while scores are computed.
    var values: array<vec4<f32>, VALUES>;
    for (var i = 0u; i < VALUES; i++) {
      values[i] = v[keys + min(first + slot + SLOTS * i, end - 1u) * VECTORS + column];
    }
    let row = keys + min(first + invocation / SHARES, end - 1u) * VECTORS;
    put_dots(query, first_head, row + invocation % SHARES, invocation);
    weigh(&running, end - first, invocation);
    for (var h = 0u; h < HEADS; h++) {
      var sum = sums[h] * shrinks[h];
      for (var i = 0u; i < VALUES; i++) {
        let at = slot + SLOTS * i;
        sum += select(0.0, weights[h * TILE + min(at, TILE - 1u)], at < TILE) * values[i];
      }
      sums[h] = sum;
    }
  }

  workgroupBarrier();
  if (invocation < SCORES) {
    scores[invocation] = running.total;
    if (invocation % TILE == 0u) {
      shrinks[invocation / TILE] = running.largest;
    }
  }
  for (var h = 0u; h < HEADS; h++) {
    workgroupBarrier();
    vectors[invocation] = sums[h];
    workgroupBarrier();
    if (slot == 0u) {
      write_head(query, first_head + h, h, column, group.z);
    }
  }
}

// Vector `column` of one head's result.
fn write_head(query: u32, head: u32, h: u32, column: u32, part: u32) {
  var sum = vectors[column];
  for (var i = 1u; i < SLOTS; i++) {
    sum += vectors[i * VECTORS + column];
  }
  var total = 0.0;
  for (var i = 0u; i < TILE; i++) {
    total += scores[h * TILE + i];
  }
  if (SPLIT) {
    let row = part_row(query, part, head);
    o[row * VECTORS + column] = sum;
    if (column == 0u) {
      lse[2u * row] = shrinks[h];
      lse[2u * row + 1u] = total;
    }
  } else {
    o[token_row(query, head) + column] = sum / total;
    if (column == 0u) {
      lse[query_entry(query, head)] = shrinks[h] + log(total);
    }
  }
}
