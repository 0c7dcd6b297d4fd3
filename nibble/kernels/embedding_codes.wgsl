// x[t] = value of row tokens[t] of a table in codes, one workgroup a row: value = code * scale of its block of 64. CODES are of 4
// bits (NF4, eight a word, the first of a pair in the high half of its byte) or of 8 (integers with a sign, four a word). A token
// beyond the vocabulary gives NaN. Columns are a multiple of 64.

struct Params {
  rows: u32,
  columns: u32,
  vocabulary: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tokens: array<u32>;
@group(0) @binding(2) var<storage, read> codes: array<u32>;
@group(0) @binding(3) var<storage, read> scales: array<f32>;
@group(0) @binding(4) var<storage, read_write> x: array<vec4<f32>>;

const FOURS = 8u / BITS;  // of a word
const BLOCK_FOURS = 16u;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let fours = params.columns / 4u;
  let token = tokens[row];
  for (var i = lane; i < fours; i += WORKGROUP) {
    var values = vec4(not_a_number());
    if (token < params.vocabulary) {
      let at = token * fours + i;
      values = four_values(codes[at / FOURS], at % FOURS) * scales[at / BLOCK_FOURS];
    }
    x[row * fours + i] = values;
  }
}
