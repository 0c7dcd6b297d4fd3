// The sixteen codes in workgroup memory, each in a bank of its own: invocations that look up different ones do not wait for
// each other, as they would in a table of the 256 pairs. NF4_CODES is nibble/base/nf4_table.h.
var<workgroup> nf4_codes: array<f32, 16>;

fn load_codes(lane: u32) {
  if (lane < 16u) {
    nf4_codes[lane] = NF4_CODES[lane];
  }
  workgroupBarrier();
}

// Of the four elements in the low half of a word.
fn four_codes(word: u32) -> vec4<f32> {
  return vec4<f32>(nf4_codes[(word >> 4u) & 15u], nf4_codes[word & 15u], nf4_codes[(word >> 12u) & 15u], nf4_codes[(word >> 8u) & 15u]);
}
