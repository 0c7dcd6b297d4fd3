// The heads of one new token of a text, from its row of the joint projection, that a workgroup of attention_step*.wgsl needs: its HEADS
// queries and their new key, normed and turned, in `fresh`.
//
// Prelude: HEAD_DIM; HEADS; NORM; X, the type of the projection, whose tokens' scales are row_scale (lib/x_scale*.wgsl); K: key_cache.h.

@group(0) @binding(1) var<storage, read> qkv: array<X>;
@group(0) @binding(2) var<storage, read_write> k: array<K>;
@group(0) @binding(3) var<storage, read_write> v: array<K>;
@group(0) @binding(4) var<storage, read> key_begin: array<u32>;
@group(0) @binding(5) var<storage, read> position: array<u32>;
@group(0) @binding(8) var<storage, read> table: array<vec4<f32>>;  // cos, sin, cos, sin: VECTORS a position
@group(0) @binding(9) var<storage, read> q_norm: array<vec4<f32>>;
@group(0) @binding(10) var<storage, read> k_norm: array<vec4<f32>>;
@group(0) @binding(11) var<storage, read> key_end: array<u32>;

const HALF = VECTORS / 2u;
const FRESH = (HEADS + 1u) * VECTORS;
const ROUNDS = (FRESH + WORKGROUP - 1u) / WORKGROUP;

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

// Vector c of the new key and values to the row of the caches that begins at vector `row`.
fn keep_new(query: u32, first_head: u32, row: u32, c: u32) {
  k[row + c] = stored(fresh[HEADS * VECTORS + c]);
  v[row + c] = stored(new_value(query, first_head, c));
}
