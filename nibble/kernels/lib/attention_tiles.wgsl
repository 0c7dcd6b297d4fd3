// What attention in tiles of BLOCK rows by BLOCK columns shares (attention_tiles.wgsl, attention_key_tiles.wgsl). A workgroup owns BLOCK
// rows, walks over the columns they meet, and keeps its results in registers. Two kinds of product do it, both staged through
// workgroup memory: `products` (rows . columns over the head dimension, slices of 16) gives scores, `accumulate` (a
// tile of weights times the columns' rows) adds to the results.
//
// The ACROSS x DOWN invocations: invocation (across, down) owns rows down + DOWN r for r < ROWS, and of a tile the
// columns 4 across to 4 across + 3, of the results the vectors across + ACROSS c for c < RESULTS.
//
// Prelude: HEAD_DIM, a multiple of 16; BLOCK, 32 or 64; STAGE_ROWS, the rows staged at a time in `accumulate`: a power
// of two from 4 to BLOCK, with STAGE_ROWS * VECTORS <= STAGE_SIZE; K, the type of four values of a column (key_cache.h).
const ROWS = 8u;                    // of 8, an invocation reads workgroup memory half as often as of 4
const ACROSS = BLOCK / 4u;
const DOWN = BLOCK / ROWS;
const INVOCATIONS = ACROSS * DOWN;
const RESULTS = (VECTORS + ACROSS - 1u) / ACROSS;
const SLICE = 4u;                   // vectors of the head dimension staged at a time
const SLICE_STRIDE = SLICE + 1u;    // one more keeps neighbouring rows in different banks
const STAGE_SIZE = 2u * BLOCK * SLICE_STRIDE;
const WEIGHT_STRIDE = BLOCK / 4u + 1u;
const LOADS = BLOCK * SLICE / INVOCATIONS;  // vectors that an invocation fetches of each operand of `products`
const LOAD_ROWS = INVOCATIONS / SLICE;
const SOURCE_LOADS = (STAGE_ROWS * VECTORS + INVOCATIONS - 1u) / INVOCATIONS;  // and of the source of `accumulate`
const PARTS = INVOCATIONS / BLOCK;  // invocations that share a row of the tile in the softmax

var<workgroup> stage: array<vec4<f32>, STAGE_SIZE>;
var<workgroup> weights: array<vec4<f32>, BLOCK * WEIGHT_STRIDE>;
var<workgroup> partial: array<f32, INVOCATIONS>;
var<workgroup> row_factor: array<f32, BLOCK>;

alias Tile = array<vec4<f32>, ROWS>;
alias Results = array<array<vec4<f32>, RESULTS>, ROWS>;

// BLOCK rows in a tensor: those from `count` > 0 on repeat the last.
struct Rows {
  first: u32,   // vector that row 0 begins with
  stride: u32,  // vectors from row to row
  count: u32,
}

fn row_at(rows: Rows, row: u32) -> u32 {
  return rows.first + min(row, rows.count - 1u) * rows.stride;
}

// Column 4 a + b of a tile lies in slot b ACROSS + a, so that neighbours across read neighbouring slots.
fn slot_of(column: u32) -> u32 {
  return BLOCK * SLICE_STRIDE + ((column & 3u) * ACROSS + (column >> 2u)) * SLICE_STRIDE;
}

// sum + a . b in the order of the elements.
fn dot_add(a: vec4<f32>, b: vec4<f32>, sum: f32) -> f32 {
  return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

// Dot products of the invocation's rows and 4 columns.
fn products(invocation: u32, left: ptr<storage, array<vec4<f32>>, read>, rows: Rows,
            right: ptr<storage, array<K>, read>, columns: Rows) -> Tile {
  let across = invocation % ACROSS;
  let down = invocation / ACROSS;
  var result: Tile;
  // The next slice is on its way while one is worked on.
  let part_of = invocation % SLICE;
  var at_left: array<u32, LOADS>;
  var at_right: array<u32, LOADS>;
  var next_left: array<vec4<f32>, LOADS>;
  var next_right: array<K, LOADS>;
  for (var n = 0u; n < LOADS; n++) {
    at_left[n] = row_at(rows, invocation / SLICE + LOAD_ROWS * n) + part_of;
    at_right[n] = row_at(columns, invocation / SLICE + LOAD_ROWS * n) + part_of;
    next_left[n] = left[at_left[n]];
    next_right[n] = right[at_right[n]];
  }
  for (var slice = 0u; slice < VECTORS; slice += SLICE) {
    workgroupBarrier();
    for (var n = 0u; n < LOADS; n++) {
      let row = invocation / SLICE + LOAD_ROWS * n;
      stage[row * SLICE_STRIDE + part_of] = next_left[n];
      stage[slot_of(row) + part_of] = vec4<f32>(next_right[n]);
    }
    workgroupBarrier();
    if (slice + SLICE < VECTORS) {
      for (var n = 0u; n < LOADS; n++) {
        next_left[n] = left[at_left[n] + slice + SLICE];
        next_right[n] = right[at_right[n] + slice + SLICE];
      }
    }
    for (var part = 0u; part < SLICE; part++) {
      let b0 = stage[slot_of(4u * across) + part];
      let b1 = stage[slot_of(4u * across + 1u) + part];
      let b2 = stage[slot_of(4u * across + 2u) + part];
      let b3 = stage[slot_of(4u * across + 3u) + part];
      for (var r = 0u; r < ROWS; r++) {
        let a = stage[(down + DOWN * r) * SLICE_STRIDE + part];
        result[r] = vec4<f32>(dot_add(a, b0, result[r].x), dot_add(a, b1, result[r].y), dot_add(a, b2, result[r].z),
                              dot_add(a, b3, result[r].w));
      }
    }
  }
  return result;
}

// results += weights times the tile's columns. Begins with a barrier, after which `weights` must be complete.
fn accumulate(invocation: u32, results: ptr<function, Results>, source: ptr<storage, array<K>, read>,
              columns: Rows) {
  let across = invocation % ACROSS;
  let down = invocation / ACROSS;
  var next: array<K, SOURCE_LOADS>;
  for (var n = 0u; n < SOURCE_LOADS; n++) {
    let i = invocation + INVOCATIONS * n;
    next[n] = source[row_at(columns, i / VECTORS) + i % VECTORS];
  }
  for (var first = 0u; first < BLOCK; first += STAGE_ROWS) {
    workgroupBarrier();
    for (var n = 0u; n < SOURCE_LOADS; n++) {
      let i = invocation + INVOCATIONS * n;
      if (i < STAGE_ROWS * VECTORS) {
        stage[i] = vec4<f32>(next[n]);
      }
    }
    workgroupBarrier();
    if (first + STAGE_ROWS < BLOCK) {
      for (var n = 0u; n < SOURCE_LOADS; n++) {
        let i = invocation + INVOCATIONS * n;
        next[n] = source[row_at(columns, first + STAGE_ROWS + i / VECTORS) + i % VECTORS];
      }
    }
    for (var four = 0u; four < STAGE_ROWS / 4u; four++) {
      var w: Tile;
      for (var r = 0u; r < ROWS; r++) {
        w[r] = weights[(down + DOWN * r) * WEIGHT_STRIDE + first / 4u + four];
      }
      for (var c = 0u; c < RESULTS; c++) {
        let at = 4u * four * VECTORS + min(across + ACROSS * c, VECTORS - 1u);
        let b0 = stage[at];
        let b1 = stage[at + VECTORS];
        let b2 = stage[at + 2u * VECTORS];
        let b3 = stage[at + 3u * VECTORS];
        for (var r = 0u; r < ROWS; r++) {
          let half = fma(w[r].yyyy, b1, fma(w[r].xxxx, b0, (*results)[r][c]));
          (*results)[r][c] = fma(w[r].wwww, b3, fma(w[r].zzzz, b2, half));
        }
      }
    }
  }
}

fn set_weights(invocation: u32, tile: Tile) {
  for (var r = 0u; r < ROWS; r++) {
    weights[(invocation / ACROSS + DOWN * r) * WEIGHT_STRIDE + invocation % ACROSS] = tile[r];
  }
}

// Running softmax of one row of the tile, of which PARTS invocations hold interleaved vectors each.
struct Softmax {
  largest: f32,  // of the whole row
  total: f32,    // of this invocation's part
}

// Turns the scores in `weights` into exp(score - largest), and says in row_factor by what earlier results shrink.
fn softmax_step(invocation: u32, before: Softmax) -> Softmax {
  let row = invocation / PARTS;
  let part = invocation % PARTS;
  var scores: array<vec4<f32>, BLOCK / 4u / PARTS>;
  var most = vec4<f32>(before.largest);
  for (var i = 0u; i < BLOCK / 4u / PARTS; i++) {
    scores[i] = weights[row * WEIGHT_STRIDE + part + PARTS * i];
    most = max(most, scores[i]);
  }
  partial[invocation] = max(max(most.x, most.y), max(most.z, most.w));
  workgroupBarrier();
  var after = before;
  for (var i = 0u; i < PARTS; i++) {
    after.largest = max(after.largest, partial[row * PARTS + i]);
  }
  let shrink = exp(before.largest - after.largest);
  after.total *= shrink;
  for (var i = 0u; i < BLOCK / 4u / PARTS; i++) {
    let met = scores[i] > vec4<f32>(0.5 * LOWEST);
    let p = select(vec4<f32>(), exp(scores[i] - after.largest), met);
    weights[row * WEIGHT_STRIDE + part + PARTS * i] = p;
    after.total += p.x + p.y + p.z + p.w;
  }
  if (part == 0u) {
    row_factor[row] = shrink;
  }
  return after;
}

// Sets row_factor to 1 / the row's total; returns the row's log of the sum of exp.
fn softmax_end(invocation: u32, softmax: Softmax) -> f32 {
  workgroupBarrier();
  partial[invocation] = softmax.total;
  workgroupBarrier();
  let row = invocation / PARTS;
  var total = 0.0;
  for (var i = 0u; i < PARTS; i++) {
    total += partial[row * PARTS + i];
  }
  if (invocation % PARTS == 0u) {
    row_factor[row] = 1.0 / total;
  }
  workgroupBarrier();
  return softmax.largest + log(total);
}
