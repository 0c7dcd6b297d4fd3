// Products with a weight W(N, K) of NF4 that is decoded where it is used, for processors with vectors of eight lanes:
//   not TURNED: y(M, N) [=|+=] x(M, K) * W^T + scaling * left(M, R) * right(N, R)^T
//   TURNED:     y(M, K) [=|+=] x(M, N) * W   + scaling * left(M, R) * right(R, K)
// An invocation computes TILE_M rows of y by TILE_N columns, the columns 8 apart, so a workgroup is one vector of lanes. Sums
// run over the inner dimension in order, then over R, a multiple of 4 or 0. N is a multiple of 8, K of 64, and TURNED takes
// TILE_N of 8. A word of `packed` has eight codes of a row of W, a block of 64 elements one absmax.
//
// The software adapter turns loads whose address differs between lanes into gathers, of which one costs as much as 30
// multiplications, checks the bounds of every element that it loads for all lanes alike, and has no FMA. So a word of codes
// is loaded for eight values, and these come out of a table in two registers, which a shuffle looks up in one instruction.
struct Params {
  rows: u32,
  outputs: u32,
  inputs: u32,
  rank: u32,  // R
  scaling: f32,
  wall: u32,  // 0
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> packed: array<u32>;
@group(0) @binding(3) var<storage, read> absmax: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<storage, read> left: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> right: array<f32>;

const LANES = 8u;
// Indices of vectors without the upper bits: the compiler then drops their half of the bounds check.
const INDEX = 0x0fffffffu;

alias Columns = array<f32, TILE_N>;

var<private> low_codes: f32;   // of code `lane`
var<private> high_codes: f32;  // of code 8 + `lane`

fn nf4_value(code: u32) -> f32 {
  return select(subgroupShuffle(low_codes, code & 7u), subgroupShuffle(high_codes, code & 7u), (code & 8u) != 0u);
}

fn dot_add(a: vec4<f32>, b0: f32, b1: f32, b2: f32, b3: f32, c: f32) -> f32 {
  return fma(a.w, b3, fma(a.z, b2, fma(a.y, b1, fma(a.x, b0, c))));
}

// Bits to the right of element i of a word: a byte has the first of its two in the high half.
fn code_shift(i: u32) -> u32 {
  return 4u * (i ^ 1u);
}

// Does nothing. Without a second use of a row's sums LLVM moves the arithmetic of all rows to the loop's end and does the
// multiplications first there, whose results then leave the registers.
fn stay(sums: Columns) {
  if (params.wall != 0u) {
    for (var j = 0u; j < TILE_N; j++) {
      y[j] = sums[j];
    }
  }
}

// Values of W for eight of the inner dimension, those of word q, and the invocation's columns from `column` on.
fn decoded(q: u32, column: array<u32, TILE_N>, words: u32) -> array<Columns, 8> {
  var b: array<Columns, 8>;
  for (var j = 0u; j < TILE_N; j++) {
    let at = column[j] * words + q;
    let word = packed[at];
    let scale = absmax[at / 8u];
    for (var l = 0u; l < 8u; l++) {
      b[l][j] = scale * nf4_value(word >> code_shift(l));
    }
  }
  return b;
}

// The same where the columns are those of W: neighbours are in one word.
fn decoded_turned(q: u32, first: u32, lane: u32) -> array<Columns, 8> {
  var b: array<Columns, 8>;
  for (var l = 0u; l < 8u; l++) {
    let start = ((8u * q + l) * (params.inputs / 8u) + first / 8u) & INDEX;
    let scale = absmax[start / 8u];
    for (var j = 0u; j < TILE_N; j++) {
      b[l][j] = scale * nf4_value(packed[start + j] >> code_shift(lane));
    }
  }
  return b;
}

// scaling * four rows of `right`, or columns.
fn term_columns(r: u32, column: array<u32, TILE_N>, width: u32) -> array<Columns, 4> {
  var b: array<Columns, 4>;
  for (var j = 0u; j < TILE_N; j++) {
    for (var l = 0u; l < 4u; l++) {
      b[l][j] = params.scaling * right[select(column[j] * params.rank + r + l, (r + l) * width + column[j], TURNED)];
    }
  }
  return b;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  for (var i = 0u; i < LANES; i++) {
    low_codes = select(low_codes, NF4_CODES[i], lane == i);
    high_codes = select(high_codes, NF4_CODES[LANES + i], lane == i);
  }
  let row = group.y * TILE_M;
  let first = group.x * (LANES * TILE_N);
  let width = select(params.outputs, params.inputs, TURNED);
  let words = select(params.inputs, params.outputs, TURNED) / 8u;  // of the inner dimension
  var column: array<u32, TILE_N>;
  for (var j = 0u; j < TILE_N; j++) {
    column[j] = min(first + lane + LANES * j, width - 1u);
  }
  var sum: array<Columns, TILE_M>;
  for (var q = 0u; q < words; q++) {
    var b: array<Columns, 8>;
    if (TURNED) {
      b = decoded_turned(q, first, lane);
    } else {
      b = decoded(q, column, words);
    }
    for (var i = 0u; i < TILE_M; i++) {
      let at = (2u * (min(row + i, params.rows - 1u) * words + q)) & (INDEX - 1u);
      let a0 = x[at];
      let a1 = x[at + 1u];
      for (var j = 0u; j < TILE_N; j++) {
        let half = dot_add(a0, b[0][j], b[1][j], b[2][j], b[3][j], sum[i][j]);
        sum[i][j] = dot_add(a1, b[4][j], b[5][j], b[6][j], b[7][j], half);
      }
      stay(sum[i]);
    }
  }
  for (var r = 0u; r < params.rank; r += 4u) {
    let b = term_columns(r, column, width);
    for (var i = 0u; i < TILE_M; i++) {
      let a = left[((min(row + i, params.rows - 1u) * params.rank + r) / 4u) & INDEX];
      for (var j = 0u; j < TILE_N; j++) {
        sum[i][j] = dot_add(a, b[0][j], b[1][j], b[2][j], b[3][j], sum[i][j]);
      }
      stay(sum[i]);
    }
  }
  for (var i = 0u; i < TILE_M; i++) {
    for (var j = 0u; j < TILE_N; j++) {
      if (row + i < params.rows && first + lane + LANES * j < width) {
        let at = (row + i) * width + column[j];
        y[at] = select(0.0, y[at], ACCUMULATE) + sum[i][j];
      }
    }
  }
}
