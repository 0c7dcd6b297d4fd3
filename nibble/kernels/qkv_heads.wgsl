// Rows of a joint projection, H query heads, Hk key heads and Hk value heads a token, to head-major rows: of queries and keys
// with RMSNorm (NORM) and rotary embedding, as qk_norm_rope.wgsl has them. LANES invocations share a (token, head) row; each
// owns vectors c and c + HALF for c = lane, lane + LANES, ...
//
// Prelude: HEAD_DIM, a multiple of 8; LANES, a power of two up to WORKGROUP; WORKGROUP; NORM; X, the type of the projection, whose tokens'
// scales are row_scale (lib/x_scale*.wgsl); K, MOST_KEY: key_cache.h.

struct Params {
  tokens: u32,
  heads: u32,
  key_heads: u32,
  capacity: u32,  // rows of a head in k and v
  first_head: u32,  // of those of a token that are done
  eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> qkv: array<X>;
@group(0) @binding(2) var<storage, read_write> q: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> k: array<K>;
@group(0) @binding(4) var<storage, read_write> v: array<K>;
@group(0) @binding(5) var<storage, read> position: array<u32>;
@group(0) @binding(6) var<storage, read> table: array<vec4<f32>>;  // cos, sin, cos, sin: VECTORS a position
@group(0) @binding(7) var<storage, read> q_norm: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read> k_norm: array<vec4<f32>>;
@group(0) @binding(9) var<storage, read> key_end: array<u32>;

const VECTORS = HEAD_DIM / 4u;
const HALF = HEAD_DIM / 8u;

var<workgroup> partial: array<f32, WORKGROUP>;

// The sum of a row's lanes' values, added in the order of the lanes.
fn row_sum(value: f32, invocation: u32) -> f32 {
  if (LANES == 1u) {
    return value;
  }
  partial[invocation] = value;
  workgroupBarrier();
  var sum = 0.0;
  for (var i = 0u; i < LANES; i++) {
    sum += partial[invocation - invocation % LANES + i];
  }
  return sum;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) invocation: u32) {
  let all_heads = params.heads + 2u * params.key_heads;
  let done = all_heads - params.first_head;
  let asked = linear_workgroup(group, groups) * (WORKGROUP / LANES) + invocation / LANES;
  let row = min(asked, params.tokens * done - 1u);
  let lane = invocation % LANES;
  let token = row / done;
  let head = params.first_head + row % done;
  let source = (token * all_heads + head) * VECTORS;
  let scale = row_scale(token);
  let is_query = head < params.heads;
  let is_value = head >= params.heads + params.key_heads;
  var inv_rms = 1.0;
  if (NORM) {
    var squares = 0.0;
    for (var c = lane; c < HALF; c += LANES) {
      let low = vec4<f32>(qkv[source + c]) * scale;
      let high = vec4<f32>(qkv[source + c + HALF]) * scale;
      squares += dot(low, low) + dot(high, high);
    }
    inv_rms = 1.0 / sqrt(row_sum(squares, invocation) / f32(HEAD_DIM) + params.eps);
  }
  if (asked != row) {
    return;
  }
  for (var c = lane; c < HALF; c += LANES) {
    var low = vec4<f32>(qkv[source + c]) * scale;
    var high = vec4<f32>(qkv[source + c + HALF]) * scale;
    if (is_value) {
      let at = key_row(head - params.heads - params.key_heads, token) + c;
      v[at] = stored(low);
      v[at + HALF] = stored(high);
      continue;
    }
    if (NORM) {
      low *= inv_rms * select(k_norm[c], q_norm[c], is_query);
      high *= inv_rms * select(k_norm[c + HALF], q_norm[c + HALF], is_query);
    }
    let turn = position[token] * VECTORS + 2u * c;
    let a = table[turn];
    let b = table[turn + 1u];
    let cosine = vec4<f32>(a.xz, b.xz);
    let sine = vec4<f32>(a.yw, b.yw);
    let turned_low = low * cosine - high * sine;
    let turned_high = high * cosine + low * sine;
    if (is_query) {
      let at = (head * params.tokens + token) * VECTORS + c;
      q[at] = turned_low;
      q[at + HALF] = turned_high;
    } else {
      let at = key_row(head - params.heads, token) + c;
      k[at] = stored(turned_low);
      k[at + HALF] = stored(turned_high);
    }
  }
}

// First vector of a token's row in k and v.
fn key_row(head: u32, token: u32) -> u32 {
  return (head * params.capacity + key_end[token] - 1u) * VECTORS;
}
