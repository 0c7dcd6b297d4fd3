// nf4_dequantize.wgsl into tiles (operand.h, Weight::tile): f16 = codes[nibble] * absmax * factor of a weight (rows, columns), or,
// TURNED, of its transpose. A table in workgroup memory gives the two codes of a byte. An invocation decodes eight rows of
// eight columns and writes sixteen bytes at a time, two neighbours the 32 bytes that GPUs write memory by: neighbours
// have neighbouring columns, but turned, every two have the rows of one tile.
struct Params {
  row_words: u32,  // columns / 8
  row_groups: u32,  // rows / 8
  factor: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> packed: array<u32>;
@group(0) @binding(2) var<storage, read> absmax: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<u32>>;

var<workgroup> pairs: array<vec2<f32>, 256>;

fn four(word: u32, scale: f32) -> vec4<f16> {
  return vec4<f16>(vec4<f32>(pairs[word & 255u], pairs[(word >> 8u) & 255u]) * scale);
}

// The vector of eight elements of a row of what is written, of so many words.
fn place_of(row: u32, word: u32, row_words: u32) -> u32 {
  const tile_words = TILE / 8u;
  let tile = row / TILE * (row_words / tile_words) + word / tile_words;
  return (tile * TILE + row % TILE) * tile_words + word % tile_words;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  pairs[lane] = nf4_codes4(lane).xy;
  workgroupBarrier();
  const side_by_side = select(1u, 2u, TURNED && TILE % 16u == 0u);
  let number = linear_workgroup(group, groups) * 256u + lane;
  let i = number / side_by_side;
  let word = i % params.row_words;
  let rows = i / params.row_words * side_by_side + number % side_by_side;
  if (rows >= params.row_groups) {
    return;
  }
  var low: array<vec4<f16>, 8>;
  var high: array<vec4<f16>, 8>;
  for (var r = 0u; r < 8u; r++) {
    let at = (rows * 8u + r) * params.row_words + word;
    let bits = packed[at];
    let scale = absmax[at / 8u] * params.factor;
    low[r] = four(bits, scale);
    high[r] = four(bits >> 16u, scale);
  }
  for (var r = 0u; r < 8u; r++) {
    if (TURNED) {
      let c = r % 4u;
      var first: vec4<f16>;
      var last: vec4<f16>;
      if (r < 4u) {
        first = vec4<f16>(low[0][c], low[1][c], low[2][c], low[3][c]);
        last = vec4<f16>(low[4][c], low[5][c], low[6][c], low[7][c]);
      } else {
        first = vec4<f16>(high[0][c], high[1][c], high[2][c], high[3][c]);
        last = vec4<f16>(high[4][c], high[5][c], high[6][c], high[7][c]);
      }
      out[place_of(word * 8u + r, rows, params.row_groups)] = vec4<u32>(bitcast<vec2<u32>>(first), bitcast<vec2<u32>>(last));
    } else {
      out[place_of(rows * 8u + r, word, params.row_words)] = vec4<u32>(bitcast<vec2<u32>>(low[r]), bitcast<vec2<u32>>(high[r]));
    }
  }
}
