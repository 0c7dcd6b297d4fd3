// The four codes of a word's lower two bytes, in the order of the elements; NF4_CODES is nibble/base/nf4_table.h.
fn nf4_codes4(word: u32) -> vec4<f32> {
  return vec4<f32>(NF4_CODES[(word >> 4u) & 15u], NF4_CODES[word & 15u], NF4_CODES[(word >> 12u) & 15u],
                   NF4_CODES[(word >> 8u) & 15u]);
}
