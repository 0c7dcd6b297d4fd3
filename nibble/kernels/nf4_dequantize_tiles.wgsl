// nf4_dequantize.wgsl into tiles (operand.h, Weight::tile): f16 = codes[nibble] * absmax * factor of a weight (rows, columns).
//
// `straight`: a group of invocations takes a row of tiles, WORDS words wide, each a vector of eight elements of each tile, so
// that neighbours write neighbouring vectors.
// `turned` writes the tiles of the transpose: an invocation takes eight rows of a word, neighbours neighbouring words, but of
// every PAIR those have the rows of one tile, and turns the 8 x 8 codes before it looks them up. Four (pairs of) neighbours,
// whose words share their blocks' maxima, then swap words, so that together they write four rows of one tile at a time.
// Columns are a multiple of 32.
struct Params {
  rows: RowsSum,  // of lib/lora_rows_sum.wgsl
  row_words: u32,  // columns / 8
  row_groups: u32,  // rows / 8
  factor: f32,
  carriers: u32,  // of lib/carry.wgsl
  cargo_first: u32,
  cargo_rounds: u32,
  workgroups: u32,  // of lib/decodes.wgsl
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

@compute @workgroup_size(WORKGROUP)
fn straight(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) lane: u32) {
  load_codes(lane);
  var piece = 0u;
  if (!decodes(linear_workgroup(group, groups), lane, &piece)) {
    return;
  }
  let number = piece * WORKGROUP + lane;
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

// Swaps the bits `mask` of one word with the bits `mask << by` of another.
fn exchange(low: ptr<function, u32>, high: ptr<function, u32>, mask: u32, by: u32) {
  let bits = ((*low >> by) ^ *high) & mask;
  *high ^= bits;
  *low ^= bits << by;
}

// Of a 4 x 4 matrix of words whose rows four neighbours have: transposed. Neighbours are PAIR apart; `own` is this one's row.
fn swap(row: vec4<u32>, own: u32) -> vec4<u32> {
  let odd = (own & 1u) == 1u;
  let beside = subgroupShuffleXor(select(row.yw, row.xz, odd), PAIR);
  let pairs = select(vec4<u32>(row.x, beside.x, row.z, beside.y), vec4<u32>(beside.x, row.y, beside.y, row.w), odd);
  let last = own >= 2u;
  let across = subgroupShuffleXor(select(pairs.zw, pairs.xy, last), 2u * PAIR);
  return select(vec4<u32>(pairs.xy, across), vec4<u32>(across, pairs.zw), last);
}

// The vector of a column whose codes are those of `word`.
fn column_of(word: u32, low: vec4<f32>, high: vec4<f32>) -> vec4<u32> {
  return bits_of(vec4<f16>(four_codes(word) * low), vec4<f16>(four_codes(word >> 16u) * high));
}

@compute @workgroup_size(WORKGROUP)
fn turned(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_size) size: u32,
          @builtin(subgroup_invocation_id) invocation: u32) {
  let lane = subgroup * size + invocation;
  load_codes(lane);
  var piece = 0u;
  if (!decodes(linear_workgroup(group, groups), lane, &piece)) {
    return;
  }
  let number = piece * WORKGROUP + lane;
  let i = number / PAIR;
  let word = i % params.row_words;
  let rows = i / params.row_words * PAIR + number % PAIR;
  let at = min(rows, params.row_groups - 1u) * 8u * params.row_words + word;
  let step = params.row_words;
  var r0 = packed[at];
  var r1 = packed[at + step];
  var r2 = packed[at + 2u * step];
  var r3 = packed[at + 3u * step];
  var r4 = packed[at + 4u * step];
  var r5 = packed[at + 5u * step];
  var r6 = packed[at + 6u * step];
  var r7 = packed[at + 7u * step];
  let low = vec4<f32>(absmax[at / 8u], absmax[(at + step) / 8u], absmax[(at + 2u * step) / 8u],
                      absmax[(at + 3u * step) / 8u]) * params.factor;
  let high = vec4<f32>(absmax[(at + 4u * step) / 8u], absmax[(at + 5u * step) / 8u], absmax[(at + 6u * step) / 8u],
                       absmax[(at + 7u * step) / 8u]) * params.factor;
  // Words of rows become words of columns. A word's first code of each byte is the high one: what transposes the words with
  // neighbours swapped transposes the codes.
  exchange(&r1, &r0, 0x0f0f0f0fu, 4u);
  exchange(&r3, &r2, 0x0f0f0f0fu, 4u);
  exchange(&r5, &r4, 0x0f0f0f0fu, 4u);
  exchange(&r7, &r6, 0x0f0f0f0fu, 4u);
  exchange(&r0, &r2, 0x00ff00ffu, 8u);
  exchange(&r1, &r3, 0x00ff00ffu, 8u);
  exchange(&r4, &r6, 0x00ff00ffu, 8u);
  exchange(&r5, &r7, 0x00ff00ffu, 8u);
  exchange(&r0, &r4, 0x0000ffffu, 16u);
  exchange(&r1, &r5, 0x0000ffffu, 16u);
  exchange(&r2, &r6, 0x0000ffffu, 16u);
  exchange(&r3, &r7, 0x0000ffffu, 16u);
  let own = word % 4u;
  let first = swap(vec4<u32>(r0, r1, r2, r3), own);
  let second = swap(vec4<u32>(r4, r5, r6, r7), own);
  if (rows >= params.row_groups) {
    return;
  }
  let column = (word - own) * 8u + own;
  for (var n = 0u; n < 4u; n++) {
    out[place_of(column + n * 8u, rows, params.row_groups)] = column_of(first[n], low, high);
    out[place_of(column + n * 8u + 4u, rows, params.row_groups)] = column_of(second[n], low, high);
  }
}
