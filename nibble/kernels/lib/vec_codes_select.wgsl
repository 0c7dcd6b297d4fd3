// Codes chosen bit by bit (nf4.wgsl), for processors, where a table's places would be read one by one.
const CODES_ROOM = 1u;

fn prepare_codes(index: u32) {
}

fn codes8(word: u32, index: u32) -> Eight {
  return Eight(nf4_codes4(word), nf4_codes4(word >> 16u));
}
