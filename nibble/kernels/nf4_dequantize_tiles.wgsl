// nf4_dequantize.wgsl into tiles (operand.h, Weight::tile): f16 = codes[nibble] * absmax * factor of a weight (rows, columns).
//
// `straight`: a group of invocations takes a row of tiles, WORDS words wide, each a vector of eight elements of each tile, so
// that neighbours write neighbouring vectors.
// `turned` writes the tiles of the transpose: an invocation decodes eight rows of eight columns, neighbours neighbouring
// columns, but of every PAIR those have the rows of one tile. Four (pairs of) neighbours then swap what they have, so that
// together they write four rows of one tile at a time. Columns are a multiple of 32.
struct Params {
  row_words: u32,  // columns / 8
  row_groups: u32,  // rows / 8
  factor: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> packed: array<u32>;
@group(0) @binding(2) var<storage, read> absmax: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<u32>>;

const TILE_WORDS = TILE / 8u;
const TILE_VECTORS = TILE * TILE_WORDS;
const WORDS = 8u;
const STEPS = WORDS / TILE_WORDS;
const PAIR = select(1u, 2u, TILE % 16u == 0u);

fn four(word: u32, scale: f32) -> vec4<f16> {
  return vec4<f16>(four_codes(word) * scale);
}

fn bits_of(first: vec4<f16>, last: vec4<f16>) -> vec4<u32> {
  return vec4<u32>(bitcast<vec2<u32>>(first), bitcast<vec2<u32>>(last));
}

// The vector of eight elements of a row of what is written, of so many words.
fn place_of(row: u32, word: u32, row_words: u32) -> u32 {
  let tile = row / TILE * (row_words / TILE_WORDS) + word / TILE_WORDS;
  return (tile * TILE + row % TILE) * TILE_WORDS + word % TILE_WORDS;
}

@compute @workgroup_size(256)
fn straight(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) lane: u32) {
  load_codes(lane);
  let number = linear_workgroup(group, groups) * 256u + lane;
  let across = (params.row_words + WORDS - 1u) / WORDS;
  let unit = number / TILE_VECTORS;
  let row = unit / across * TILE + number % TILE_VECTORS / TILE_WORDS;
  let first = unit % across * WORDS + number % TILE_WORDS;
  if (row >= params.row_groups * 8u) {
    return;
  }
  // Loads of their own, so that all are on their way at once.
  var words: array<u32, STEPS>;
  var scales: array<f32, STEPS>;
  for (var n = 0u; n < STEPS; n++) {
    let at = row * params.row_words + min(first + n * TILE_WORDS, params.row_words - 1u);
    words[n] = packed[at];
    scales[n] = absmax[at / 8u] * params.factor;
  }
  for (var n = 0u; n < STEPS; n++) {
    let word = first + n * TILE_WORDS;
    if (word < params.row_words) {
      out[place_of(row, word, params.row_words)] = bits_of(four(words[n], scales[n]), four(words[n] >> 16u, scales[n]));
    }
  }
}

// Of a 4 x 4 matrix whose rows four neighbours have: transposed. Neighbours are PAIR apart; `own` is this one's row.
fn swap(rows: array<vec4<u32>, 4>, own: u32) -> array<vec4<u32>, 4> {
  var result = rows;
  let odd = (own & 1u) == 1u;
  let low = subgroupShuffleXor(select(result[1], result[0], odd), PAIR);
  let high = subgroupShuffleXor(select(result[3], result[2], odd), PAIR);
  result[0] = select(result[0], low, odd);
  result[1] = select(low, result[1], odd);
  result[2] = select(result[2], high, odd);
  result[3] = select(high, result[3], odd);
  let last = own >= 2u;
  let even_row = subgroupShuffleXor(select(result[2], result[0], last), 2u * PAIR);
  let odd_row = subgroupShuffleXor(select(result[3], result[1], last), 2u * PAIR);
  result[0] = select(result[0], even_row, last);
  result[2] = select(even_row, result[2], last);
  result[1] = select(result[1], odd_row, last);
  result[3] = select(odd_row, result[3], last);
  return result;
}

@compute @workgroup_size(256)
fn turned(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_size) size: u32,
          @builtin(subgroup_invocation_id) invocation: u32) {
  let lane = subgroup * size + invocation;
  load_codes(lane);
  let number = linear_workgroup(group, groups) * 256u + lane;
  let i = number / PAIR;
  let word = i % params.row_words;
  let rows = i / params.row_words * PAIR + number % PAIR;
  var low: array<vec4<f16>, 8>;
  var high: array<vec4<f16>, 8>;
  for (var r = 0u; r < 8u; r++) {
    let at = (min(rows, params.row_groups - 1u) * 8u + r) * params.row_words + word;
    let bits = packed[at];
    let scale = absmax[at / 8u] * params.factor;
    low[r] = four(bits, scale);
    high[r] = four(bits >> 16u, scale);
  }
  let own = word % 4u;
  for (var half = 0u; half < 2u; half++) {
    var columns: array<vec4<u32>, 4>;
    for (var c = 0u; c < 4u; c++) {
      if (half == 0u) {
        columns[c] = bits_of(vec4<f16>(low[0][c], low[1][c], low[2][c], low[3][c]),
                             vec4<f16>(low[4][c], low[5][c], low[6][c], low[7][c]));
      } else {
        columns[c] = bits_of(vec4<f16>(high[0][c], high[1][c], high[2][c], high[3][c]),
                             vec4<f16>(high[4][c], high[5][c], high[6][c], high[7][c]));
      }
    }
    columns = swap(columns, own);
    for (var n = 0u; n < 4u; n++) {
      if (rows < params.row_groups) {
        out[place_of((word - own + n) * 8u + half * 4u + own, rows, params.row_groups)] = columns[n];
      }
    }
  }
}
