// The four codes of a word: integers with a sign, the first in the low byte.
fn int8_codes4(word: u32) -> vec4<f32> {
  return vec4<f32>(vec4<i32>(vec4<u32>(word) << vec4(24u, 16u, 8u, 0u)) >> vec4(24u));
}

// As lib/nf4.wgsl has it; a word holds four elements, and `at` is 0.
fn four_values(word: u32, at: u32) -> vec4<f32> {
  return int8_codes4(word);
}
