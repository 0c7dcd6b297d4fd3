// What attention_step.wgsl does, where a subgroup has a lane for each vector of a key. A subgroup takes every SUBGROUPS-th TILE of the
// part's keys by itself: VECTORS lanes share a key, in KEY_ROUNDS rounds, and after their exchanges lane (round, head) has the score of
// one key and head. Nothing waits for another subgroup before all keys are met. Formulas, layouts: attention_step.h.
//
// Prelude: of attention_step.wgsl; SUBGROUP, a multiple of VECTORS, which is a power of two from 4 on.

const WORKGROUP = 128u;
const SUBGROUPS = WORKGROUP / SUBGROUP;
const ROWS = 4u;  // heads that there is room for: lane % ROWS is a lane's
const KEY_ROUNDS = VECTORS / ROWS;
const KEYS_AT_ONCE = SUBGROUP / VECTORS;
const TILE = KEY_ROUNDS * KEYS_AT_ONCE;

var<workgroup> largests: array<f32, SUBGROUPS * ROWS>;
var<workgroup> totals: array<f32, SUBGROUPS * ROWS>;
var<workgroup> sums: array<vec4<f32>, SUBGROUPS * HEADS * VECTORS>;

// A lane's vectors of a tile.
struct Tile {
  keys: array<K, KEY_ROUNDS>,
  values: array<K, KEY_ROUNDS>,
}

// The row of which a lane has a vector.
fn row_of(first: u32, round: u32, lane: u32) -> u32 {
  return first + round * KEYS_AT_ONCE + lane / VECTORS;
}

fn read_tile(rows: u32, first: u32, end: u32, lane: u32) -> Tile {
  var tile: Tile;
  for (var r = 0u; r < KEY_ROUNDS; r++) {
    let at = rows + min(row_of(first, r, lane), end - 1u) * VECTORS + lane % VECTORS;
    tile.keys[r] = k[at];
    tile.values[r] = v[at];
  }
  return tile;
}

// The new token's row is not there yet.
fn put_new(tile: ptr<function, Tile>, query: u32, first_head: u32, first: u32, lane: u32) {
  let new_row = key_end[query] - 1u;
  let key = stored(fresh[HEADS * VECTORS + lane % VECTORS]);
  let value = stored(new_value(query, first_head, lane % VECTORS));
  for (var r = 0u; r < KEY_ROUNDS; r++) {
    if (row_of(first, r, lane) == new_row) {
      (*tile).keys[r] = key;
      (*tile).values[r] = value;
    }
  }
}

// What a lane knows of its head, and its vector of each head's weighted values.
struct Running {
  largest: f32,
  total: f32,  // of its own weights
  sums: array<vec4<f32>, HEADS>,
}

// Of two rounds' products the sum that this lane keeps, of both lanes.
fn exchange(low: vec4<f32>, high: vec4<f32>, bit: u32, lane: u32) -> vec4<f32> {
  let upper = (lane & bit) != 0u;
  return select(low, high, upper) + subgroupShuffleXor(select(high, low, upper), bit);
}

// Of the first `half` products the sum with one of the next.
fn halve(products: ptr<function, array<vec4<f32>, KEY_ROUNDS>>, half: u32, lane: u32) {
  for (var r = 0u; r < half; r++) {
    (*products)[r] = exchange((*products)[r], (*products)[r + half], ROWS * half, lane);
  }
}

// The product of the lane's key and head, of round (lane % VECTORS) / ROWS.
fn product_of(tile: Tile, queries: array<vec4<f32>, HEADS>, lane: u32) -> f32 {
  var products: array<vec4<f32>, KEY_ROUNDS>;
  for (var r = 0u; r < KEY_ROUNDS; r++) {
    for (var h = 0u; h < HEADS; h++) {
      products[r][h] = dot(vec4<f32>(tile.keys[r]), queries[h]);
    }
  }
  // Not a loop over them: compilers unroll loops of known length alone, and keep arrays in registers in these.
  if (KEY_ROUNDS > 8u) {
    halve(&products, 8u, lane);
  }
  if (KEY_ROUNDS > 4u) {
    halve(&products, 4u, lane);
  }
  if (KEY_ROUNDS > 2u) {
    halve(&products, 2u, lane);
  }
  if (KEY_ROUNDS > 1u) {
    halve(&products, 1u, lane);
  }
  return sum_of_four(products[0], lane);
}

fn add_tile(running: ptr<function, Running>, tile: Tile, queries: array<vec4<f32>, HEADS>, first: u32, end: u32, lane: u32) {
  let met = row_of(first, lane % VECTORS / ROWS, lane) < end;
  let score = select(LOWEST, product_of(tile, queries, lane) * params.scale, met);
  var largest = max(score, (*running).largest);
  for (var bit = ROWS; bit < SUBGROUP; bit *= 2u) {
    largest = max(largest, subgroupShuffleXor(largest, bit));
  }
  let shrink = exp((*running).largest - largest);
  let weight = select(0.0, exp(score - largest), met);
  (*running).largest = largest;
  (*running).total = (*running).total * shrink + weight;
  for (var h = 0u; h < HEADS; h++) {
    (*running).sums[h] *= subgroupShuffle(shrink, h);
  }
  for (var r = 0u; r < KEY_ROUNDS; r++) {
    // Behind the end stands anything, NaN too.
    let value = select(vec4<f32>(), vec4<f32>(tile.values[r]), row_of(first, r, lane) < end);
    for (var h = 0u; h < HEADS; h++) {
      (*running).sums[h] += subgroupShuffle(weight, lane / VECTORS * VECTORS + ROWS * r + h) * value;
    }
  }
}

// Puts the subgroups' results together. 1 barrier.
fn write_heads(query: u32, first_head: u32, running: Running, part: u32, invocation: u32, subgroup: u32, lane: u32) {
  var total = running.total;
  for (var bit = ROWS; bit < SUBGROUP; bit *= 2u) {
    total += subgroupShuffleXor(total, bit);
  }
  if (lane < ROWS) {
    largests[subgroup * ROWS + lane] = running.largest;
    totals[subgroup * ROWS + lane] = total;
  }
  for (var h = 0u; h < HEADS; h++) {
    var sum = running.sums[h];
    for (var bit = VECTORS; bit < SUBGROUP; bit *= 2u) {
      sum += subgroupShuffleXor(sum, bit);
    }
    if (lane < VECTORS) {
      sums[(subgroup * HEADS + h) * VECTORS + lane] = sum;
    }
  }
  workgroupBarrier();
  for (var n = invocation; n < HEADS * VECTORS; n += WORKGROUP) {
    put_together(query, first_head, n / VECTORS, n % VECTORS, part);
  }
}

fn put_together(query: u32, first_head: u32, h: u32, column: u32, part: u32) {
  var largest = f32(LOWEST);
  for (var s = 0u; s < SUBGROUPS; s++) {
    largest = max(largest, largests[s * ROWS + h]);
  }
  var sum = vec4<f32>();
  var total = 0.0;
  for (var s = 0u; s < SUBGROUPS; s++) {
    let weight = exp(largests[s * ROWS + h] - largest);
    sum += weight * sums[(s * HEADS + h) * VECTORS + column];
    total += weight * totals[s * ROWS + h];
  }
  write_vector(query, first_head + h, part, column, sum, largest, total);
}

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) invocation: u32,
           @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32) {
  let query = group.x;
  let first_head = group.y * HEADS;
  let rows = key_rows(first_head);
  let begin = key_begin[query] + group.z * params.part_keys;
  let last = key_end[query];
  let end = min(last, begin + params.part_keys);
  let own = TILE * subgroup;
  var tile = read_tile(rows, begin + own, last, lane);
  prepare(query, first_head, invocation);
  if (first_head % params.group == 0u && end == last && begin < end && invocation < VECTORS) {
    keep_new(query, first_head, rows + (last - 1u) * VECTORS, invocation);
  }
  var queries: array<vec4<f32>, HEADS>;
  for (var h = 0u; h < HEADS; h++) {
    queries[h] = fresh[h * VECTORS + lane % VECTORS];
  }
  var running: Running;
  running.largest = LOWEST;
  for (var first = begin; first < end; first += TILE * SUBGROUPS) {
    if (first + TILE * SUBGROUPS >= end) {
      put_new(&tile, query, first_head, first + own, lane);
    }
    add_tile(&running, tile, queries, first + own, end, lane);
    if (first + TILE * SUBGROUPS < end) {
      tile = read_tile(rows, first + TILE * SUBGROUPS + own, last, lane);
    }
  }
  write_heads(query, first_head, running, group.z, invocation, subgroup, lane);
}
