// Rows of the joint projection, x (tokens, (HEADS + 2 KEY_HEADS) * HEAD_DIM), and the operands of attention (pack_heads.h):
//   forward   qk = rope(x * inv_rms * weight) of queries and keys, f16 with a scale a token; most = the largest of the values
//   backward  dx, f16 with a scale a token, from dq and dkv, of which parts are summed in their order
// rope turns the pair (i, i + D/2) by the angle of the token's position. A workgroup does a token: it goes over its heads
// twice, for the largest magnitude and to write. LANES invocations of one subgroup share a head; each has vectors c and
// c + HALF for c = lane, lane + LANES, ... Where that is one c of a few heads, an invocation keeps what it will write.
//
// Prelude: HEAD_DIM, HEADS, KEY_HEADS, NORM, PARTS, WORKGROUP, SUBGROUP, LANES: powers of two but for the heads and PARTS.

struct Params {
  tokens: u32,
  eps: f32,
  first: u32,  // token that this dispatch begins with, and dq as it is bound
  end: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f16>>;
@group(0) @binding(2) var<storage, read> x_scale: array<f32>;
@group(0) @binding(3) var<storage, read> position: array<u32>;
@group(0) @binding(4) var<storage, read> table: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> q_norm: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> k_norm: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> y: array<vec4<f16>>;
@group(0) @binding(8) var<storage, read_write> y_scale: array<f32>;
@group(0) @binding(9) var<storage, read_write> v_most: array<f32>;
@group(0) @binding(9) var<storage, read> dq: array<vec4<f32>>;
@group(0) @binding(10) var<storage, read> dkv: array<vec4<f32>>;

const VECTORS = HEAD_DIM / 4u;
const HALF = HEAD_DIM / 8u;
const QK = HEADS + KEY_HEADS;
const ROW = (QK + KEY_HEADS) * VECTORS;
const VALUES = QK * VECTORS;  // where they begin in a row
const SLOTS = WORKGROUP / LANES;
const ROUNDS = (QK + SLOTS - 1u) / SLOTS;

const KEPT = select(0u, ROUNDS, LANES == HALF && ROUNDS <= 6u);  // pairs

var<workgroup> inv_rms: array<f32, QK>;
var<workgroup> pull: array<f32, QK>;

struct Place {
  index: u32,  // of the invocation
  slot: u32,
  lane: u32,
}

fn place_of(subgroup: u32, invocation: u32) -> Place {
  let index = subgroup * SUBGROUP + invocation;
  return Place(index, index / LANES, index % LANES);
}

// Over the lanes of a head.
fn lanes_sum(value: f32) -> f32 {
  var sum = value;
  for (var i = 1u; i < LANES; i *= 2u) {
    sum += subgroupShuffleXor(sum, i);
  }
  return sum;
}

fn largest_bits(value: vec4<f32>) -> u32 {
  let bits = bitcast<vec4<u32>>(value) & vec4<u32>(MAGNITUDE);
  return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

struct Pair {
  low: vec4<f32>,
  high: vec4<f32>,
}

fn pair_bits(pair: Pair) -> u32 {
  return max(largest_bits(pair.low), largest_bits(pair.high));
}

fn x_pair(token: u32, head: u32, column: u32) -> Pair {
  let at = token * ROW + head * VECTORS + column;
  let scale = x_scale[token];
  return Pair(vec4<f32>(x[at]) * scale, vec4<f32>(x[at + HALF]) * scale);
}

fn weighted(pair: Pair, head: u32, column: u32) -> Pair {
  if (!NORM) {
    return pair;
  }
  if (head < HEADS) {
    return Pair(pair.low * q_norm[column], pair.high * q_norm[column + HALF]);
  }
  return Pair(pair.low * k_norm[column], pair.high * k_norm[column + HALF]);
}

// `direction` -1 turns back.
fn turned(pair: Pair, token: u32, column: u32, direction: f32) -> Pair {
  let at = position[token] * VECTORS + 2u * column;
  let a = table[at];
  let b = table[at + 1u];
  let cosine = vec4<f32>(a.xz, b.xz);
  let sine = vec4<f32>(a.yw, b.yw) * direction;
  return Pair(pair.low * cosine - pair.high * sine, pair.high * cosine + pair.low * sine);
}

fn inverse_rms(squares: f32) -> f32 {
  return select(1.0, 1.0 / sqrt(squares / f32(HEAD_DIM) + params.eps), NORM);
}

fn rotated(token: u32, head: u32, column: u32, factor: f32) -> Pair {
  let pair = x_pair(token, head, column);
  return turned(weighted(Pair(pair.low * factor, pair.high * factor), head, column), token, column, 1.0);
}

fn store(to: u32, pair: Pair, up: f32) {
  y[to] = vec4<f16>(pair.low * up);
  y[to + HALF] = vec4<f16>(pair.high * up);
}

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) invocation: u32) {
  let at = place_of(subgroup, invocation);
  let token = params.first + linear_workgroup(group, groups);
  if (token >= params.end) {
    return;
  }
  var most = 0u;
  var kept: array<Pair, max(KEPT, 1u)>;
  for (var round = 0u; round < KEPT; round++) {
    let head = min(round * SLOTS + at.slot, QK - 1u);
    let pair = x_pair(token, head, at.lane);
    let factor = inverse_rms(lanes_sum(dot(pair.low, pair.low) + dot(pair.high, pair.high)));
    kept[round] = turned(weighted(Pair(pair.low * factor, pair.high * factor), head, at.lane), token, at.lane, 1.0);
    most = max(most, pair_bits(kept[round]));
  }
  for (var round = 0u; KEPT == 0u && round < ROUNDS; round++) {
    let head = min(round * SLOTS + at.slot, QK - 1u);
    var squares = 0.0;
    for (var c = at.lane; c < HALF; c += LANES) {
      let pair = x_pair(token, head, c);
      squares += dot(pair.low, pair.low) + dot(pair.high, pair.high);
    }
    let factor = inverse_rms(lanes_sum(squares));
    for (var c = at.lane; c < HALF; c += LANES) {
      most = max(most, pair_bits(rotated(token, head, c, factor)));
    }
    if (at.lane == 0u) {
      inv_rms[head] = factor;
    }
  }
  var most_value = 0u;
  for (var i = at.index; i < KEY_HEADS * VECTORS; i += WORKGROUP) {
    most_value = max(most_value, largest_bits(vec4<f32>(x[token * ROW + VALUES + i])));
  }
  let scale = row_scale(row_max(at.index, most));
  most_value = row_max(at.index, most_value);
  if (at.index == 0u) {
    y_scale[token] = scale.down;
    v_most[token] = bitcast<f32>(most_value) * x_scale[token];
  }
  for (var round = 0u; round < KEPT; round++) {
    let head = round * SLOTS + at.slot;
    if (head < QK) {
      store(token * QK * VECTORS + head * VECTORS + at.lane, kept[round], scale.up);
    }
  }
  for (var head = at.slot; KEPT == 0u && head < QK; head += SLOTS) {
    for (var c = at.lane; c < HALF; c += LANES) {
      store(token * QK * VECTORS + head * VECTORS + c, rotated(token, head, c, inv_rms[head]), scale.up);
    }
  }
}

// Vector i of the gradients of a token's keys, then values.
fn dkv_sum(token: u32, i: u32) -> vec4<f32> {
  let row = 2u * KEY_HEADS * VECTORS;
  var sum = dkv[token * row + i];
  for (var part = 1u; part < PARTS; part++) {
    sum += dkv[(part * params.tokens + token) * row + i];
  }
  return sum;
}

// d loss / d (x * inv_rms) of a column.
fn normed_gradient(token: u32, head: u32, column: u32) -> Pair {
  var given: Pair;
  if (head < HEADS) {
    let at = ((token - params.first) * HEADS + head) * VECTORS + column;
    given = Pair(dq[at], dq[at + HALF]);
  } else {
    let at = (head - HEADS) * VECTORS + column;
    given = Pair(dkv_sum(token, at), dkv_sum(token, at + HALF));
  }
  return weighted(turned(given, token, column, -1.0), head, column);
}

fn gradient(token: u32, head: u32, column: u32, factor: f32, along: f32) -> Pair {
  let given = normed_gradient(token, head, column);
  let pair = x_pair(token, head, column);
  return Pair((given.low - pair.low * along) * factor, (given.high - pair.high * along) * factor);
}

fn whole_gradient(token: u32, head: u32, column: u32) -> Pair {
  let pair = x_pair(token, head, column);
  let given = normed_gradient(token, head, column);
  let factor = inverse_rms(lanes_sum(dot(pair.low, pair.low) + dot(pair.high, pair.high)));
  let products = lanes_sum(dot(given.low, pair.low) + dot(given.high, pair.high));
  let along = select(0.0, products / f32(HEAD_DIM) * factor * factor, NORM);
  return Pair((given.low - pair.low * along) * factor, (given.high - pair.high * along) * factor);
}

@compute @workgroup_size(WORKGROUP)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) invocation: u32) {
  let at = place_of(subgroup, invocation);
  let token = params.first + linear_workgroup(group, groups);
  if (token >= params.end) {
    return;
  }
  var most = 0u;
  var kept: array<Pair, max(KEPT, 1u)>;
  for (var round = 0u; round < KEPT; round++) {
    let head = min(round * SLOTS + at.slot, QK - 1u);
    kept[round] = whole_gradient(token, head, at.lane);
    most = max(most, pair_bits(kept[round]));
  }
  for (var round = 0u; KEPT == 0u && round < ROUNDS; round++) {
    let head = min(round * SLOTS + at.slot, QK - 1u);
    var squares = 0.0;
    var products = 0.0;
    if (NORM) {
      for (var c = at.lane; c < HALF; c += LANES) {
        let pair = x_pair(token, head, c);
        let given = normed_gradient(token, head, c);
        squares += dot(pair.low, pair.low) + dot(pair.high, pair.high);
        products += dot(given.low, pair.low) + dot(given.high, pair.high);
      }
    }
    let factor = inverse_rms(lanes_sum(squares));
    let along = lanes_sum(products) / f32(HEAD_DIM) * factor * factor;
    for (var c = at.lane; c < HALF; c += LANES) {
      most = max(most, pair_bits(gradient(token, head, c, factor, along)));
    }
    if (at.lane == 0u) {
      inv_rms[head] = factor;
      pull[head] = along;
    }
  }
  for (var i = at.index; i < KEY_HEADS * VECTORS; i += WORKGROUP) {
    most = max(most, largest_bits(dkv_sum(token, KEY_HEADS * VECTORS + i)));
  }
  let scale = row_scale(row_max(at.index, most));
  if (at.index == 0u) {
    y_scale[token] = scale.down;
  }
  for (var round = 0u; round < KEPT; round++) {
    let head = round * SLOTS + at.slot;
    if (head < QK) {
      store(token * ROW + head * VECTORS + at.lane, kept[round], scale.up);
    }
  }
  for (var head = at.slot; KEPT == 0u && head < QK; head += SLOTS) {
    for (var c = at.lane; c < HALF; c += LANES) {
      store(token * ROW + head * VECTORS + c, gradient(token, head, c, inv_rms[head], pull[head]), scale.up);
    }
  }
  for (var i = at.index; i < KEY_HEADS * VECTORS; i += WORKGROUP) {
    y[token * ROW + VALUES + i] = vec4<f16>(dkv_sum(token, KEY_HEADS * VECTORS + i) * scale.up);
  }
}
