// Attention of few queries and many keys. A workgroup takes a query's HEADS heads that share a key head, and a part of its
// keys, so that these are read once, a TILE at a time: SHARES neighbours compute the scores of one key, invocation (head, key)
// its weights, and invocation (slot, column) adds the values of every SLOTS-th key to vector `column` of each head's result;
// the slots are added in their order at the end. Formulas, layouts: attention.h.
// SPLIT: a part leaves the largest score, the sum of weights against it and the weighted sum of values
// (attention_decode_parts.wgsl); else there is one part, and the result is written.
//
// Prelude: HEAD_DIM; HEADS, at most 4, a divisor of the group; SPLIT; K: key_cache.h.

@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<K>;
@group(0) @binding(3) var<storage, read> v: array<K>;
@group(0) @binding(4) var<storage, read> key_begin: array<u32>;
@group(0) @binding(5) var<storage, read> key_end: array<u32>;

// Shares of the products of a key, whose share begins at vector `key_at`, with the heads of the query.
fn put_dots(query: u32, first_head: u32, key_at: u32, invocation: u32) {
  let share = invocation % SHARES;
  var sums: array<f32, HEADS>;
  for (var c = 0u; c < VECTORS / SHARES; c++) {
    let key = vec4<f32>(k[key_at + SHARES * c]);
    for (var h = 0u; h < HEADS; h++) {
      sums[h] += dot(key, q[((first_head + h) * params.tokens + query) * VECTORS + SHARES * c + share]);
    }
  }
  for (var h = 0u; h < HEADS; h++) {
    dots[share * DOTS + h * TILE + invocation / SHARES] = sums[h];
  }
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
    var values: array<K, VALUES>;
    for (var i = 0u; i < VALUES; i++) {
      values[i] = v[keys + min(first + slot + SLOTS * i, end - 1u) * VECTORS + column];
    }
    let row = keys + min(first + invocation / SHARES, end - 1u) * VECTORS;
    put_dots(query, first_head, row + invocation % SHARES, invocation);
    weigh(&running, end - first, invocation);
    add_values(&sums, values, slot);
  }
  write_heads(query, first_head, running, sums, group.z, invocation);
}
