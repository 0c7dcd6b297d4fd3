// Attention of one new token each of some texts, from their rows of the joint projection: what qkv_heads.wgsl and
// attention_decode.wgsl do in turn, for GPUs, where each dispatch costs more than what it does. Every workgroup makes its heads'
// queries and the new key; the first of those that meet it put it, and the new values, into the caches. Formulas, layouts:
// attention_step.h; how a workgroup is spread: attention_decode.wgsl; another way: attention_step_lanes.wgsl.
//
// Prelude: HEAD_DIM; HEADS, at most 4, a divisor of the group; SPLIT; NORM; X, the type of the projection, whose tokens' scales are
// row_scale (lib/x_scale*.wgsl); K, MOST_KEY: key_cache.h.

const KEYS = VECTORS / SHARES;  // vectors of a key that an invocation has

// An invocation's share of a tile.
struct Tile {
  keys: array<K, KEYS>,
  values: array<K, VALUES>,
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
      (*tile).keys[c] = stored(fresh[HEADS * VECTORS + SHARES * c + invocation % SHARES]);
    }
  }
  for (var i = 0u; i < VALUES; i++) {
    if (min(first + invocation / VECTORS + SLOTS * i, end - 1u) == new_row) {
      (*tile).values[i] = stored(new_value(query, first_head, invocation % VECTORS));
    }
  }
}

fn put_dots(tile: ptr<function, Tile>, invocation: u32) {
  let share = invocation % SHARES;
  var sums: array<f32, HEADS>;
  for (var c = 0u; c < KEYS; c++) {
    for (var h = 0u; h < HEADS; h++) {
      sums[h] += dot(vec4<f32>((*tile).keys[c]), fresh[h * VECTORS + SHARES * c + share]);
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
    keep_new(query, first_head, rows + (last - 1u) * VECTORS, invocation);
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
