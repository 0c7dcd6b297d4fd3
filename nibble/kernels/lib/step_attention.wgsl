// Attention of the new token over the cached keys and itself. Keys are cut into parts; a workgroup has a part of one key head's
// (item), a subgroup QUERIES of the head's queries and every TEAMS-th key of the part, whose scores and weighted values it keeps by the
// running maximum. The teams' results are put together in workgroup memory, the parts' by whoever has those columns of the output.
// Of the prelude: K: key_cache.h; QUERIES: one, or of long parts, whose keys are then read and converted half as often, two.
@group(0) @binding(10) var<storage, read_write> k_cache: array<K>;
@group(0) @binding(11) var<storage, read_write> v_cache: array<K>;
@group(0) @binding(12) var<storage, read> rope: array<vec2<f32>>;  // (positions, HEAD_DIM / 2) of cos, sin

const LOWEST = -1e30;
const GROUP = HEADS / KEY_HEADS;
const VECTORS = HEAD_DIM / 4u;
const OWN_VECTORS = (VECTORS + SUBGROUP - 1u) / SUBGROUP;  // of a lane
const TEAM = GROUP / QUERIES;  // subgroups that have all of the head's queries
const TEAMS = SUBGROUPS / TEAM;
const KEYS = 8u;                  // of a subgroup at a time
const KEY_LANES = SUBGROUP / KEYS;
// In `scratch`, behind the subgroups' results: the item's queries, the new key, the new values.
const FRESH_AT = SUBGROUPS * HEAD_DIM;
const FRESH = (GROUP + 2u) * HEAD_DIM;

var<workgroup> largests: array<f32, SUBGROUPS>;
var<workgroup> totals: array<f32, SUBGROUPS>;

alias Vectors = array<vec4<f32>, OWN_VECTORS>;
alias KeyVectors = array<K, OWN_VECTORS>;

fn own_vector(lane: u32, i: u32) -> u32 {
  return min(lane + i * SUBGROUP, VECTORS - 1u);
}

// A lane's share of a row's rotation: pairs (d, d + HALF).
const HALF = HEAD_DIM / 2u;
const OWN_PAIRS = (HALF + SUBGROUP - 1u) / SUBGROUP;
struct Turn {
  turn: array<vec2<f32>, OWN_PAIRS>,
  norm: array<vec2<f32>, OWN_PAIRS>,
}
fn turn_of(row: u32, lane: u32) -> Turn {
  var result: Turn;
  for (var i = 0u; i < OWN_PAIRS; i++) {
    let d = min(lane + i * SUBGROUP, HALF - 1u);
    result.turn[i] = rope[params.position * HALF + d];
    if (HEAD_NORM) {
      let norm = select(K_NORM_AT, Q_NORM_AT, row < GROUP) + d;
      result.norm[i] = vec2<f32>(constant_at(norm), constant_at(norm + HALF));
    }
  }
  return result;
}

fn fresh_place(key_head: u32, k: u32) -> u32 {
  let row = k / HEAD_DIM;
  let head = select(HEADS + select(key_head, KEY_HEADS + key_head, row > GROUP), key_head * GROUP + row, row < GROUP);
  return QKV_AT + head * HEAD_DIM + k % HEAD_DIM;
}
fn fetch_fresh(key_head: u32, invocation: u32) {
  for (var first = invocation; first < FRESH; first += 2u * WORKGROUP) {
    let second = first + WORKGROUP;
    let taken = take_four(vec2<u32>(fresh_place(key_head, first), fresh_place(key_head, min(second, FRESH - 1u))).xyxy);
    scratch[FRESH_AT + first] = taken.x;
    if (second < FRESH) {
      scratch[FRESH_AT + second] = taken.y;
    }
  }
}

// Norm and rotation of a query, with the factor of the scores, or of the key; in place.
fn turn_row(row: u32, turn: Turn, lane: u32, changes: bool) {
  let at = FRESH_AT + row * HEAD_DIM;
  var pairs: array<vec2<f32>, OWN_PAIRS>;
  var sum = 0.0;
  for (var i = 0u; i < OWN_PAIRS; i++) {
    let d = lane + i * SUBGROUP;
    if (changes && d < HALF) {
      pairs[i] = vec2<f32>(scratch[at + d], scratch[at + d + HALF]);
      sum += dot(pairs[i], pairs[i]);
    }
  }
  var factor = select(1.0, 1.0 / sqrt(f32(HEAD_DIM)), row < GROUP);
  if (HEAD_NORM) {
    factor *= 1.0 / sqrt(subgroupAdd(sum) / f32(HEAD_DIM) + params.eps);
  }
  for (var i = 0u; i < OWN_PAIRS; i++) {
    let d = lane + i * SUBGROUP;
    if (changes && d < HALF) {
      let pair = pairs[i] * select(vec2<f32>(1.0), turn.norm[i], HEAD_NORM) * factor;
      scratch[at + d] = pair.x * turn.turn[i].x - pair.y * turn.turn[i].y;
      scratch[at + d + HALF] = pair.y * turn.turn[i].x + pair.x * turn.turn[i].y;
    }
  }
}

fn fresh_vector(row: u32, vector: u32) -> vec4<f32> {
  let at = FRESH_AT + row * HEAD_DIM + 4u * vector;
  return vec4<f32>(scratch[at], scratch[at + 1u], scratch[at + 2u], scratch[at + 3u]);
}

// Some keys of a subgroup, every TEAMS-th row.
struct Tile {
  k: array<KeyVectors, KEYS>,
  v: array<KeyVectors, KEYS>,
}
fn cached_tile(key_head: u32, first: u32, lane: u32) -> Tile {
  var tile: Tile;
  for (var j = 0u; j < KEYS; j++) {
    let row = layer * params.keys_stride + (key_head * params.capacity + min(first + j * TEAMS, params.new_key)) * VECTORS;
    for (var i = 0u; i < OWN_VECTORS; i++) {
      tile.k[j][i] = k_cache[row + own_vector(lane, i)];
      tile.v[j][i] = v_cache[row + own_vector(lane, i)];
    }
  }
  return tile;
}

fn put_new_key(key_head: u32, invocation: u32) {
  if (invocation < VECTORS) {
    let at = layer * params.keys_stride + (key_head * params.capacity + params.new_key) * VECTORS + invocation;
    k_cache[at] = stored(fresh_vector(GROUP, invocation));
    v_cache[at] = stored(fresh_vector(GROUP + 1u, invocation));
  }
}

// What a subgroup has of its query's keys.
struct Running {
  largest: f32,
  total: f32,  // of the keys whose first lane it is
  sums: Vectors,
}

// Of two keys' products the sum that this lane keeps, of both lanes.
fn halved(low: f32, high: f32, bit: u32, lane: u32) -> f32 {
  let upper = (lane & bit) != 0u;
  return select(low, high, upper) + subgroupShuffleXor(select(high, low, upper), bit);
}

// Of the products of eight keys the whole subgroup's sum of key lane / KEY_LANES.
fn sum_of_key(p: array<f32, KEYS>, lane: u32) -> f32 {
  let half = SUBGROUP / 2u;
  let a = halved(halved(p[0], p[4], half, lane), halved(p[2], p[6], half, lane), half / 2u, lane);
  let b = halved(halved(p[1], p[5], half, lane), halved(p[3], p[7], half, lane), half / 2u, lane);
  var sum = halved(a, b, half / 4u, lane);
  for (var bit = KEY_LANES / 2u; bit > 0u; bit /= 2u) {
    sum += subgroupShuffleXor(sum, bit);
  }
  return sum;
}

// With the new key alone, or without any.
fn begun(query: Vectors, lane: u32, with_new: bool) -> Running {
  var score = 0.0;
  for (var i = 0u; i < OWN_VECTORS; i++) {
    score += select(0.0, dot(query[i], fresh_vector(GROUP, own_vector(lane, i))), lane + i * SUBGROUP < VECTORS);
  }
  var result: Running;
  result.largest = select(LOWEST, subgroupAdd(score), with_new);
  result.total = select(0.0, 1.0, with_new && lane == 0u);
  for (var i = 0u; i < OWN_VECTORS; i++) {
    result.sums[i] = select(vec4<f32>(), fresh_vector(GROUP + 1u, own_vector(lane, i)), with_new);
  }
  return result;
}

fn add_tile(running: Running, tile: Tile, query: Vectors, first: u32, end: u32, lane: u32) -> Running {
  var products: array<f32, KEYS>;
  for (var j = 0u; j < KEYS; j++) {
    for (var i = 0u; i < OWN_VECTORS; i++) {
      products[j] += select(0.0, dot(query[i], vec4<f32>(tile.k[j][i])), lane + i * SUBGROUP < VECTORS);
    }
  }
  let met = first + lane / KEY_LANES * TEAMS < end;
  let score = select(LOWEST, sum_of_key(products, lane), met);
  var result = running;
  result.largest = max(running.largest, subgroupMax(score));
  let shrink = exp(running.largest - result.largest);
  let weight = select(0.0, exp(score - result.largest), met);
  result.total = running.total * shrink + select(0.0, weight, lane % KEY_LANES == 0u);
  for (var i = 0u; i < OWN_VECTORS; i++) {
    result.sums[i] *= shrink;
  }
  for (var j = 0u; j < KEYS; j++) {
    let of_key = subgroupShuffle(weight, j * KEY_LANES);
    for (var i = 0u; i < OWN_VECTORS; i++) {
      // Behind the end stands anything, NaN too.
      result.sums[i] += of_key * select(vec4<f32>(), vec4<f32>(tile.v[j][i]), first + j * TEAMS < end);
    }
  }
  return result;
}

// Puts the teams' results for each subgroup's query `query` together and hands them on as part `part`.
fn put_part(key_head: u32, part: u32, query: u32, invocation: u32) {
  for (var n = invocation; n < TEAM * HEAD_DIM; n += WORKGROUP) {
    let member = n / HEAD_DIM;
    var largest = f32(LOWEST);
    for (var t = 0u; t < TEAMS; t++) {
      largest = max(largest, largests[t * TEAM + member]);
    }
    var sum = 0.0;
    var total = 0.0;
    for (var t = 0u; t < TEAMS; t++) {
      let weight = exp(largests[t * TEAM + member] - largest);
      sum += weight * scratch[(t * TEAM + member) * HEAD_DIM + n % HEAD_DIM];
      total += weight * totals[t * TEAM + member];
    }
    let at = (key_head * GROUP + member * QUERIES + query) * params.parts + part;
    put(PARTS_AT + at * HEAD_DIM + n % HEAD_DIM, sum);
    if (n % HEAD_DIM == 0u) {
      put(NUMBERS_AT + 2u * at, largest);
      put(NUMBERS_AT + 2u * at + 1u, total);
    }
  }
}

fn query_of(row: u32, lane: u32) -> Vectors {
  var query: Vectors;
  for (var i = 0u; i < OWN_VECTORS; i++) {
    query[i] = fresh_vector(row, own_vector(lane, i));
  }
  return query;
}

// Before a barrier.
fn keep(running: Running, subgroup: u32, lane: u32) {
  let total = subgroupAdd(running.total);
  if (subgroup < TEAMS * TEAM) {
    for (var i = 0u; i < OWN_VECTORS; i++) {
      let vector = lane + i * SUBGROUP;
      if (vector < VECTORS) {
        for (var c = 0u; c < 4u; c++) {
          scratch[subgroup * HEAD_DIM + 4u * vector + c] = running.sums[i][c];
        }
      }
    }
    if (lane == 0u) {
      largests[subgroup] = running.largest;
      totals[subgroup] = total;
    }
  }
}

fn attend(item: u32, invocation: u32, subgroup: u32, lane: u32) {
  let key_head = item / params.parts;
  let part = item % params.parts;
  let begin = params.first_key + part * params.part_keys;
  let end = min(params.new_key + 1u, begin + params.part_keys);
  let team = subgroup / TEAM;
  let turn = turn_of(subgroup, lane);
  var tile = cached_tile(key_head, begin + team, lane);
  fetch_fresh(key_head, invocation);
  workgroupBarrier();
  turn_row(min(subgroup, GROUP), turn, lane, subgroup <= GROUP);
  workgroupBarrier();
  if (begin < end && end == params.new_key + 1u) {
    put_new_key(key_head, invocation);
  }
  let query = query_of(subgroup % TEAM * QUERIES, lane);
  let second_query = query_of(subgroup % TEAM * QUERIES + QUERIES - 1u, lane);
  // The new token's row of the caches holds something else as yet.
  let cached_end = min(end, params.new_key);
  let with_new = team == 0u && begin < end && end > params.new_key;
  var running = begun(query, lane, with_new);
  var second: Running;
  if (QUERIES == 2u) {
    second = begun(second_query, lane, with_new);
  }
  for (var first = begin; first < cached_end; first += KEYS * TEAMS) {
    running = add_tile(running, tile, query, first + team, cached_end, lane);
    if (QUERIES == 2u) {
      second = add_tile(second, tile, second_query, first + team, cached_end, lane);
    }
    if (first + KEYS * TEAMS < cached_end) {
      tile = cached_tile(key_head, first + KEYS * TEAMS + team, lane);
    }
  }
  keep(running, subgroup, lane);
  workgroupBarrier();
  put_part(key_head, part, 0u, invocation);
  if (QUERIES == 2u) {
    workgroupBarrier();
    keep(second, subgroup, lane);
    workgroupBarrier();
    put_part(key_head, part, 1u, invocation);
  }
}

// Columns [first, first + count) of the output from all parts; `scratch` has room for three numbers of each part of each. 2 barriers.
fn put_attended(own: Own, invocation: u32) {
  workgroupBarrier();
  for (var n = invocation; n < own.count * params.parts; n += WORKGROUP) {
    let column = own.first + n % own.count;
    let at = column / HEAD_DIM * params.parts + n / own.count;
    let taken = take_four(vec3<u32>(NUMBERS_AT + 2u * at, NUMBERS_AT + 2u * at + 1u, PARTS_AT + at * HEAD_DIM + column % HEAD_DIM).xyzz);
    scratch[3u * n] = taken.x;
    scratch[3u * n + 1u] = taken.y;
    scratch[3u * n + 2u] = taken.z;
  }
  workgroupBarrier();
  for (var n = invocation; n < own.count; n += WORKGROUP) {
    var largest = f32(LOWEST);
    for (var p = 0u; p < params.parts; p++) {
      largest = max(largest, scratch[3u * (p * own.count + n)]);
    }
    var sum = 0.0;
    var total = 0.0;
    for (var p = 0u; p < params.parts; p++) {
      let at = 3u * (p * own.count + n);
      let weight = exp(scratch[at] - largest);
      total += weight * scratch[at + 1u];
      sum += weight * scratch[at + 2u];
    }
    put(ATTENDED_AT + place(own.first + n), sum / total);
  }
}
