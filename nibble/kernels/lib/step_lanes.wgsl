// Products of a lane in f32. Codes are looked up in the lanes of the subgroup (lib/subgroup_codes.wgsl).
struct Lane {
  x: Inputs,
  scale: f32,
}
fn lane_of(inputs: Inputs) -> Lane {
  return Lane(inputs, 1.0);
}
// Before a barrier.
fn prepare_products(index: u32, lane: u32) {
  prepare_codes(lane);
}

// Byte `at` of a word: a dot product with a one there, which units take that shifts and masks do not.
fn byte_of(word: u32, at: u32) -> u32 {
  return dot4U8Packed(word, 1u << (8u * at));
}
// Of a word, whose bytes hold two elements each, the first in the upper half.
fn add_word(sum: f32, word: u32, low: vec4<f32>, high: vec4<f32>) -> f32 {
  let even = (word >> 4u) & 0x0f0f0f0fu;
  let odd = word & 0x0f0f0f0fu;
  var result = fma(code(byte_of(even, 0u)), low.x, sum);
  result = fma(code(byte_of(odd, 0u)), low.y, result);
  result = fma(code(byte_of(even, 1u)), low.z, result);
  result = fma(code(byte_of(odd, 1u)), low.w, result);
  result = fma(code(byte_of(even, 2u)), high.x, result);
  result = fma(code(byte_of(odd, 2u)), high.y, result);
  result = fma(code(byte_of(even, 3u)), high.z, result);
  return fma(code(byte_of(odd, 3u)), high.w, result);
}

fn product_of(words: vec2<u32>, x: Lane, lane: u32) -> f32 {
  return add_word(add_word(0.0, words.x, x.x[0], x.x[1]), words.y, x.x[2], x.x[3]);
}
