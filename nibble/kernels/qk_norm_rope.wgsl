// Between a projection's token-major rows x (tokens, heads * D) and head-major rows y (heads, capacity, D):
//   forward_norm   y = rope(x * inv_rms * weight),  inv_rms = 1 / sqrt(mean_d x^2 + eps), kept for the backward
//   forward_rope   y = rope(x)
//   forward_copy   y = x
// and their transposes, which write dx from dy. rope turns the pair (i, i + D/2) by the angle of the token's position:
//   y_i = x_i cos - x_{i+D/2} sin,  y_{i+D/2} = x_{i+D/2} cos + x_i sin.
// LANES invocations share a (token, head) row; each owns vectors c and c + HALF for c = lane, lane + LANES, ...
//
// x may be f16 with a scale a token, and its heads, as those of dx, some columns of longer rows.
//
// Prelude: HEAD_DIM, a multiple of 8; LANES, a power of two up to WORKGROUP; WORKGROUP; SCALED and X, the type of x.

struct Params {
  tokens: u32,       // of this slice of x
  first_token: u32,  // its first one
  heads: u32,        // of this slice of y
  first_head: u32,
  all_heads: u32,
  row_length: u32,   // of x and dx, in vectors
  first_vector: u32, // of head 0 there
  capacity: u32,     // rows of a head in y
  row_offset: u32,   // row of y that token 0 has
  eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<X>;                     // forward
@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;            // backward
@group(0) @binding(2) var<storage, read_write> target_: array<vec4<f32>>; // y forward, dx backward
@group(0) @binding(3) var<storage, read> x_scale: array<f32>;             // of the slice; where SCALED, else unused
@group(0) @binding(4) var<storage, read> position: array<u32>;
@group(0) @binding(5) var<storage, read> table: array<vec4<f32>>;         // cos, sin, cos, sin: VECTORS a position
@group(0) @binding(6) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> inv_rms_out: array<f32>;   // (tokens, all_heads)
@group(0) @binding(7) var<storage, read> inv_rms_in: array<f32>;
@group(0) @binding(8) var<storage, read> x_again: array<X>;               // backward of a norm

const VECTORS = HEAD_DIM / 4u;
const HALF = HEAD_DIM / 8u;

var<workgroup> partial: array<f32, WORKGROUP>;

struct Row {
  exists: bool,
  lane: u32,
  token: u32,       // among all tokens
  scale_at: u32,    // of x_scale
  token_major: u32, // first vector in the slice of x
  head_major: u32,  // first vector in the slice of y
  entry: u32,       // of inv_rms
}

fn row_of(group: vec3<u32>, groups: vec3<u32>, invocation: u32) -> Row {
  let asked = linear_workgroup(group, groups) * (WORKGROUP / LANES) + invocation / LANES;
  let last = params.tokens * params.heads - 1u;
  let row = min(asked, last);
  let token = row / params.heads;
  let head = row - token * params.heads;
  var result: Row;
  result.exists = asked <= last;
  result.lane = invocation % LANES;
  result.token = params.first_token + token;
  result.scale_at = token;
  result.token_major = token * params.row_length + params.first_vector + (params.first_head + head) * VECTORS;
  result.head_major = (head * params.capacity + params.row_offset + result.token) * VECTORS;
  result.entry = result.token * params.all_heads + params.first_head + head;
  return result;
}

// The row's sum of its lanes' values, added in the order of the lanes.
fn row_sum(value: f32, invocation: u32) -> f32 {
  if (LANES == 1u) {
    return value;
  }
  partial[invocation] = value;
  workgroupBarrier();
  let first = invocation - invocation % LANES;
  var sum = 0.0;
  for (var i = 0u; i < LANES; i++) {
    sum += partial[first + i];
  }
  return sum;
}

struct Pair {
  low: vec4<f32>,
  high: vec4<f32>,
}

struct Turn {
  cosine: vec4<f32>,
  sine: vec4<f32>,
}

fn turn_of(token: u32, column: u32) -> Turn {
  let at = position[token] * VECTORS + 2u * column;
  let a = table[at];
  let b = table[at + 1u];
  return Turn(vec4<f32>(a.xz, b.xz), vec4<f32>(a.yw, b.yw));
}

fn turned(pair: Pair, turn: Turn) -> Pair {
  return Pair(pair.low * turn.cosine - pair.high * turn.sine, pair.high * turn.cosine + pair.low * turn.sine);
}

fn turned_back(pair: Pair, turn: Turn) -> Pair {
  return Pair(pair.low * turn.cosine + pair.high * turn.sine, pair.high * turn.cosine - pair.low * turn.sine);
}

fn scale_of(row: Row) -> f32 {
  if (SCALED) {
    return x_scale[row.scale_at];
  }
  return 1.0;
}

fn x_pair(row: Row, column: u32) -> Pair {
  let at = row.token_major + column;
  let scale = scale_of(row);
  return Pair(vec4<f32>(x[at]) * scale, vec4<f32>(x[at + HALF]) * scale);
}

fn x_pair_again(row: Row, column: u32) -> Pair {
  let at = row.token_major + column;
  let scale = scale_of(row);
  return Pair(vec4<f32>(x_again[at]) * scale, vec4<f32>(x_again[at + HALF]) * scale);
}

fn dy_pair(row: Row, column: u32) -> Pair {
  return Pair(dy[row.head_major + column], dy[row.head_major + column + HALF]);
}

fn store(row: u32, column: u32, pair: Pair) {
  target_[row + column] = pair.low;
  target_[row + column + HALF] = pair.high;
}

@compute @workgroup_size(WORKGROUP)
fn forward_norm(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                @builtin(local_invocation_index) invocation: u32) {
  let row = row_of(group, groups, invocation);
  var squares = 0.0;
  for (var c = row.lane; c < HALF; c += LANES) {
    let pair = x_pair(row, c);
    squares += dot(pair.low, pair.low) + dot(pair.high, pair.high);
  }
  let inv_rms = 1.0 / sqrt(row_sum(squares, invocation) / f32(HEAD_DIM) + params.eps);
  if (!row.exists) {
    return;
  }
  if (row.lane == 0u) {
    inv_rms_out[row.entry] = inv_rms;
  }
  for (var c = row.lane; c < HALF; c += LANES) {
    let pair = x_pair(row, c);
    let normed = Pair(pair.low * inv_rms * weight[c], pair.high * inv_rms * weight[c + HALF]);
    store(row.head_major, c, turned(normed, turn_of(row.token, c)));
  }
}

@compute @workgroup_size(WORKGROUP)
fn forward_rope(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                @builtin(local_invocation_index) invocation: u32) {
  let row = row_of(group, groups, invocation);
  if (!row.exists) {
    return;
  }
  for (var c = row.lane; c < HALF; c += LANES) {
    store(row.head_major, c, turned(x_pair(row, c), turn_of(row.token, c)));
  }
}

@compute @workgroup_size(WORKGROUP)
fn forward_copy(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                @builtin(local_invocation_index) invocation: u32) {
  let row = row_of(group, groups, invocation);
  if (!row.exists) {
    return;
  }
  for (var c = row.lane; c < HALF; c += LANES) {
    store(row.head_major, c, x_pair(row, c));
  }
}

// d loss / d (x * inv_rms), of one column.
fn normed_gradient(row: Row, column: u32) -> Pair {
  let pair = turned_back(dy_pair(row, column), turn_of(row.token, column));
  return Pair(pair.low * weight[column], pair.high * weight[column + HALF]);
}

@compute @workgroup_size(WORKGROUP)
fn backward_norm(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                 @builtin(local_invocation_index) invocation: u32) {
  let row = row_of(group, groups, invocation);
  var along = 0.0;
  for (var c = row.lane; c < HALF; c += LANES) {
    let pair = normed_gradient(row, c);
    let given = x_pair_again(row, c);
    along += dot(pair.low, given.low) + dot(pair.high, given.high);
  }
  let inv_rms = inv_rms_in[row.entry];
  let pull = row_sum(along, invocation) / f32(HEAD_DIM) * inv_rms * inv_rms;
  if (!row.exists) {
    return;
  }
  for (var c = row.lane; c < HALF; c += LANES) {
    let pair = normed_gradient(row, c);
    let given = x_pair_again(row, c);
    store(row.token_major, c, Pair((pair.low - given.low * pull) * inv_rms, (pair.high - given.high * pull) * inv_rms));
  }
}

@compute @workgroup_size(WORKGROUP)
fn backward_rope(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                 @builtin(local_invocation_index) invocation: u32) {
  let row = row_of(group, groups, invocation);
  if (!row.exists) {
    return;
  }
  for (var c = row.lane; c < HALF; c += LANES) {
    store(row.token_major, c, turned_back(dy_pair(row, c), turn_of(row.token, c)));
  }
}

@compute @workgroup_size(WORKGROUP)
fn backward_copy(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                 @builtin(local_invocation_index) invocation: u32) {
  let row = row_of(group, groups, invocation);
  if (!row.exists) {
    return;
  }
  for (var c = row.lane; c < HALF; c += LANES) {
    store(row.token_major, c, dy_pair(row, c));
  }
}
