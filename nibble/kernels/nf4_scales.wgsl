// absmax[i] = map[code i] * largest + offset of NF4 whose scales are quantised too; contract and formula: nf4_scales.h. Four codes are a
// word, the first in the low byte; an invocation writes the four scales of one. Of what lies between two parts it writes zeros.
// The product is rounded before the offset is added: `nothing` is 0, which no compiler knows, so that none makes both one operation.
struct Params {
  parts: array<vec4<u32>, PARTS>,  // first scale, scales, scales of a matrix, first block; rising, and no scales from some part on
  first_word: u32,
  words: u32,
  nothing: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> codes: array<u32>;
@group(0) @binding(2) var<storage, read> blocks: array<vec2<f32>>;  // largest deviation, offset
@group(0) @binding(3) var<storage, read> map: array<f32>;
@group(0) @binding(4) var<storage, read_write> absmax: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let word = linear_workgroup(group, groups) * 64u + lane;
  if (word >= params.words) {
    return;
  }
  let element = 4u * (params.first_word + word);
  var part = params.parts[0];
  for (var n = 1u; n < PARTS; n++) {
    if (params.parts[n].y > 0u && element >= params.parts[n].x) {
      part = params.parts[n];
    }
  }
  let first = element - part.x;
  let matrix_blocks = (part.z + BLOCK - 1u) / BLOCK;
  var matrix = first / part.z;
  var within = first % part.z;
  var scales = vec4<f32>();
  for (var k = 0u; k < 4u && first + k < part.y; k++) {
    let block = blocks[part.w + matrix * matrix_blocks + within / BLOCK];
    let deviation = map[(codes[word] >> (8u * k)) & 255u] * block.x;
    scales[k] = bitcast<f32>(bitcast<u32>(deviation) ^ params.nothing) + block.y;
    within += 1u;
    if (within == part.z) {
      within = 0u;
      matrix += 1u;
    }
  }
  absmax[word] = scales;
}
