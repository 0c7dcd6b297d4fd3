// Writes rows of heads as operands of matrix units (attention_matrix.h): f16, each row times a power of two
// (lib/row_scale.wgsl), in tiles of 16 x 16 that lie one after the other, along the head dimension first; PLAIN: each
// tile by rows; TURNED: by columns. Rows beyond the tokens, up to `padded`, are zero, with scale 0; so are rows of zeros.
// `gradients` does so with d_o and writes what else a query's gradients need: lse * log2(e) and delta = o . d_o.
//
// A workgroup does 16 rows of a head, an invocation a row's part in one tile. Prelude: HEAD_DIM, PLAIN, TURNED.

struct Params {
  tokens: u32,
  padded: u32,
  head_step: u32,   // vectors of 4 from head to head in x and o
  token_step: u32,  // from token to token
  plain: u32,       // where the tiles begin, in vectors of 8
  turned: u32,
  scales: u32,      // where in `numbers` the scales begin, and what a query has besides
  lse_at: u32,
  delta_at: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> operands: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> numbers: array<f32>;
@group(0) @binding(4) var<storage, read> o: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> lse: array<f32>;
@group(0) @binding(6) var<storage, read_write> delta: array<f32>;

const TILES = HEAD_DIM / 16u;
const LOG2_E = 1.44269504;

var<workgroup> largest_of: array<u32, HEAD_DIM>;
var<workgroup> delta_of: array<f32, HEAD_DIM>;
var<workgroup> values: array<array<vec4<f16>, 4>, HEAD_DIM>;

fn bits_of(value: vec4<f32>) -> u32 {
  let bits = bitcast<vec4<u32>>(value) & vec4<u32>(MAGNITUDE);
  return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

fn eight(low: vec4<f16>, high: vec4<f16>) -> vec4<u32> {
  return vec4<u32>(bitcast<vec2<u32>>(low), bitcast<vec2<u32>>(high));
}

// Where the invocation's 16 values begin in x and o; beyond the tokens those of the last.
fn place(group: vec3<u32>, row: u32, tile: u32) -> u32 {
  let token = min(group.x * 16u + row, params.tokens - 1u);
  return group.y * params.head_step + token * params.token_step + tile * 4u;
}

fn pack(group: vec3<u32>, index: u32) {
  let row = index / TILES;
  let tile = index % TILES;
  let given = group.x * 16u + row < params.tokens;
  let at = place(group, row, tile);
  var part: array<vec4<f32>, 4>;
  var most = 0u;
  for (var i = 0u; i < 4u; i++) {
    part[i] = select(vec4<f32>(), x[at + i], given);
    most = max(most, bits_of(part[i]));
  }
  largest_of[index] = most;
  workgroupBarrier();
  var largest = 0u;
  for (var i = 0u; i < TILES; i++) {
    largest = max(largest, largest_of[row * TILES + i]);
  }
  let scale = row_scale(largest);
  if (tile == 0u) {
    numbers[params.scales + group.y * params.padded + group.x * 16u + row] = select(scale.down, 0.0, largest == 0u);
  }
  var rounded: array<vec4<f16>, 4>;
  for (var i = 0u; i < 4u; i++) {
    rounded[i] = vec4<f16>(part[i] * scale.up);
  }
  let first = (group.y * params.padded + group.x * 16u) * HEAD_DIM / 8u + tile * 32u + row * 2u;
  if (PLAIN) {
    operands[params.plain + first] = eight(rounded[0], rounded[1]);
    operands[params.plain + first + 1u] = eight(rounded[2], rounded[3]);
  }
  if (TURNED) {
    values[index] = rounded;
    workgroupBarrier();
    // What was the invocation's row is now its column of the tile.
    var column: array<vec4<f16>, 4>;
    for (var i = 0u; i < 16u; i++) {
      column[i / 4u][i % 4u] = values[i * TILES + tile][row / 4u][row % 4u];
    }
    operands[params.turned + first] = eight(column[0], column[1]);
    operands[params.turned + first + 1u] = eight(column[2], column[3]);
  }
}

@compute @workgroup_size(HEAD_DIM)
fn rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
  pack(group, index);
}

@compute @workgroup_size(HEAD_DIM)
fn gradients(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
  pack(group, index);
  let row = index / TILES;
  let tile = index % TILES;
  let at = place(group, row, tile);
  var part = 0.0;
  for (var i = 0u; i < 4u; i++) {
    part += dot(o[at + i], x[at + i]);
  }
  delta_of[index] = part;
  workgroupBarrier();
  if (tile != 0u) {
    return;
  }
  var whole = 0.0;
  for (var i = 0u; i < TILES; i++) {
    whole += delta_of[index + i];
  }
  let token = group.x * 16u + row;
  let query = group.y * params.tokens + min(token, params.tokens - 1u);
  numbers[params.lse_at + group.y * params.padded + token] = lse[query] * LOG2_E;
  numbers[params.delta_at + group.y * params.padded + token] = whole;
  if (token < params.tokens) {
    delta[query] = whole;
  }
}
