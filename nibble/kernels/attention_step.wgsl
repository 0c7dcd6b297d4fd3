// Attention of one new token each of some texts, from their rows of the joint projection: what qkv_heads.wgsl and
// attention_decode.wgsl do in turn, for GPUs, where each dispatch costs more than what it does. Every workgroup makes its heads'
// queries and the new key; the first of those that meet it put it, and the new values, into the caches. Formulas, layouts:
// attention_step.h; how a workgroup is spread: attention_decode.wgsl.
//
// Prelude: HEAD_DIM; HEADS, at most 4, a divisor of the group; SPLIT; NORM; X, the type of the projection, whose tokens' scales are
// row_scale (lib/x_scale*.wgsl).

@group(0) @binding(1) var<storage, read> qkv: array<X>;
@group(0) @binding(2) var<storage, read_write> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> key_begin: array<u32>;
@group(0) @binding(5) var<storage, read> position: array<u32>;
@group(0) @binding(8) var<storage, read> table: array<vec4<f32>>;  // cos, sin, cos, sin: VECTORS a position
@group(0) @binding(9) var<storage, read> q_norm: array<vec4<f32>>;
@group(0) @binding(10) var<storage, read> k_norm: array<vec4<f32>>;
@group(0) @binding(11) var<storage, read> key_end: array<u32>;

const HALF = VECTORS / 2u;
const FRESH = (HEADS + 1u) * VECTORS;
const ROUNDS = (FRESH + WORKGROUP - 1u) / WORKGROUP;
const KEYS = VECTORS / SHARES;  // vectors of a key that an invocation has

var<workgroup> fresh: array<vec4<f32>, FRESH>;  // the queries, then the new key
var<workgroup> squares: array<f32, FRESH>;

// Vector c of a head of a token's row: queries', then keys', then values'.
fn projected(query: u32, head: u32, c: u32) -> vec4<f32> {
  let all_heads = params.heads + 2u * params.heads / params.group;
  return vec4<f32>(qkv[(query * all_heads + head) * VECTORS + c]) * row_scale(query);
}

// Vector c of the norm's weight times the inverse root of the mean square, of row `row` of what is fresh.
fn norm_of(row: u32, c: u32) -> vec4<f32> {
  if (!NORM) {
    return vec4<f32>(1.0);
  }
  var sum = 0.0;
  for (var i = 0u; i < VECTORS; i++) {
    sum += squares[row * VECTORS + i];
  }
  return 1.0 / sqrt(sum / f32(HEAD_DIM) + params.eps) * select(q_norm[c], k_norm[c], row == HEADS);
}

// Vector c of a fresh row, normed and turned.
fn turned(query: u32, row: u32, c: u32) -> vec4<f32> {
  let own = fresh[row * VECTORS + c] * norm_of(row, c);
  let partner = (c + HALF) % VECTORS;
  let other = fresh[row * VECTORS + partner] * norm_of(row, partner);
  let turn = position[query] * VECTORS + 2u * (c % HALF);
  let a = table[turn];
  let b = table[turn + 1u];
  return own * vec4<f32>(a.xz, b.xz) + select(other, -other, c < HALF) * vec4<f32>(a.yw, b.yw);
}

// 3 barriers.
fn prepare(query: u32, first_head: u32, invocation: u32) {
  let new_key = params.heads + first_head / params.group;
  for (var t = invocation; t < FRESH; t += WORKGROUP) {
    let row = t / VECTORS;
    let value = projected(query, select(first_head + row, new_key, row == HEADS), t % VECTORS);
    fresh[t] = value;
    squares[t] = dot(value, value);
  }
  workgroupBarrier();
  var results: array<vec4<f32>, ROUNDS>;
  for (var i = 0u; i < ROUNDS; i++) {
    let t = min(invocation + i * WORKGROUP, FRESH - 1u);
    results[i] = turned(query, t / VECTORS, t % VECTORS);
  }
  workgroupBarrier();
  for (var i = 0u; i < ROUNDS; i++) {
    if (invocation + i * WORKGROUP < FRESH) {
      fresh[invocation + i * WORKGROUP] = results[i];
    }
  }
  workgroupBarrier();
}

// Vector c of the new token's values.
fn new_value(query: u32, first_head: u32, c: u32) -> vec4<f32> {
  return projected(query, params.heads + params.heads / params.group + first_head / params.group, c);
}

// An invocation's share of a tile.
struct Tile {
  keys: array<vec4<f32>, KEYS>,
  values: array<vec4<f32>, VALUES>,
}

// Of the new token's row, which is not there yet, come other numbers.
fn read_tile(tile: ptr<function, Tile>, rows: u32, first: u32, end: u32, invocation: u32) {
  let key = rows + min(first + invocation / SHARES, end - 1u) * VECTORS + invocation % SHARES;
  for (var c = 0u; c < KEYS; c++) {
    (*tile).keys[c] = k[key + SHARES * c];
  }
  for (var i = 0u; i < VALUES; i++) {
    let row = min(first + invocation / VECTORS + SLOTS * i, end - 1u);
    (*tile).values[i] = v[rows + row * VECTORS + invocation % VECTORS];
  }
}

fn put_new(tile: ptr<function, Tile>, query: u32, first_head: u32, first: u32, end: u32, invocation: u32) {
  let new_row = key_end[query] - 1u;
  if (min(first + invocation / SHARES, end - 1u) == new_row) {
    for (var c = 0u; c < KEYS; c++) {
      (*tile).keys[c] = fresh[HEADS * VECTORS + SHARES * c + invocation % SHARES];
    }
  }
  for (var i = 0u; i < VALUES; i++) {
    if (min(first + invocation / VECTORS + SLOTS * i, end - 1u) == new_row) {
      (*tile).values[i] = new_value(query, first_head, invocation % VECTORS);
    }
  }
}

fn put_dots(tile: ptr<function, Tile>, invocation: u32) {
  let share = invocation % SHARES;
  var sums: array<f32, HEADS>;
  for (var c = 0u; c < KEYS; c++) {
    for (var h = 0u; h < HEADS; h++) {
      sums[h] += dot((*tile).keys[c], fresh[h * VECTORS + SHARES * c + share]);
    }
  }
  for (var h = 0u; h < HEADS; h++) {
    dots[share * DOTS + h * TILE + invocation / SHARES] = sums[h];
  }
}

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  let query = group.x;
  let first_head = group.y * HEADS;
  let rows = key_rows(first_head);
  let begin = key_begin[query] + group.z * params.part_keys;
  let last = key_end[query];
  let end = min(last, begin + params.part_keys);
  var tile: Tile;
  if (begin < end) {
    read_tile(&tile, rows, begin, end, invocation);
  }
  prepare(query, first_head, invocation);
  if (first_head % params.group == 0u && end == last && begin < end && invocation < VECTORS) {
    k[rows + (last - 1u) * VECTORS + invocation] = fresh[HEADS * VECTORS + invocation];
    v[rows + (last - 1u) * VECTORS + invocation] = new_value(query, first_head, invocation);
  }
  var running = Running(LOWEST, 0.0);
  var sums: array<vec4<f32>, HEADS>;
  for (var first = begin; first < end; first += TILE) {
    if (first + TILE >= end) {
      put_new(&tile, query, first_head, first, end, invocation);
    }
    put_dots(&tile, invocation);
    weigh(&running, end - first, invocation);
    add_values(&sums, tile.values, invocation / VECTORS);
    if (first + TILE < end) {
      read_tile(&tile, rows, first + TILE, end, invocation);
    }
  }
  write_heads(query, first_head, running, sums, group.z, invocation);
}
