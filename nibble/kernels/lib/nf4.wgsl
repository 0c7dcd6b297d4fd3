// The codes of four elements, chosen bit by bit: no table in memory that invocations would read at different places.
// NF4_CODES is nibble/base/nf4_table.h.
fn nf4_pair(low: u32, bit: vec4<bool>) -> vec4<f32> {
  return select(vec4<f32>(NF4_CODES[low]), vec4<f32>(NF4_CODES[low + 1u]), bit);
}
fn nf4_codes4(word: u32) -> vec4<f32> {
  let code = (vec4<u32>(word) >> vec4<u32>(4u, 0u, 12u, 8u)) & vec4<u32>(15u);
  let b0 = (code & vec4<u32>(1u)) != vec4<u32>(0u);
  let b1 = (code & vec4<u32>(2u)) != vec4<u32>(0u);
  let b2 = (code & vec4<u32>(4u)) != vec4<u32>(0u);
  let b3 = (code & vec4<u32>(8u)) != vec4<u32>(0u);
  let low = select(select(nf4_pair(0u, b0), nf4_pair(2u, b0), b1), select(nf4_pair(4u, b0), nf4_pair(6u, b0), b1), b2);
  let high = select(select(nf4_pair(8u, b0), nf4_pair(10u, b0), b1), select(nf4_pair(12u, b0), nf4_pair(14u, b0), b1), b2);
  return select(low, high, b3);
}

// Of a word's eight elements the first four, or with `at` 1 the others.
fn four_values(word: u32, at: u32) -> vec4<f32> {
  return nf4_codes4(word >> (16u * at));
}
