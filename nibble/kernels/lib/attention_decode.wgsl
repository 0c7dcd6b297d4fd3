// What attention_decode.wgsl and attention_step.wgsl share: the weights of a tile's keys from their products, and the result from
// the slots' sums. K: key_cache.h.

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

// Adds a slot's values of a tile, by their weights.
fn add_values(sums: ptr<function, array<vec4<f32>, HEADS>>, values: array<K, VALUES>, slot: u32) {
  for (var h = 0u; h < HEADS; h++) {
    var sum = (*sums)[h] * shrinks[h];
    for (var i = 0u; i < VALUES; i++) {
      let at = slot + SLOTS * i;
      sum += select(0.0, weights[h * TILE + min(at, TILE - 1u)], at < TILE) * vec4<f32>(values[i]);
    }
    (*sums)[h] = sum;
  }
}

// Writes the heads' results: slots are added in their order.
fn write_heads(query: u32, first_head: u32, running: Running, sums: array<vec4<f32>, HEADS>, part: u32, invocation: u32) {
  let slot = invocation / VECTORS;
  let column = invocation % VECTORS;
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
      write_head(query, first_head + h, h, column, part);
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
  write_vector(query, head, part, column, sum, shrinks[h], total);
}
