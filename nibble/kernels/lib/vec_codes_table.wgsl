// The code book in the first CODES_ROOM values of `shares`, COPIES times, so that lanes which look up different codes meet
// different banks. NF4_CODES is nibble/base/nf4_table.h.
const COPIES = 32u;
const CODES_ROOM = 16u * COPIES;

fn prepare_codes(index: u32) {
  for (var i = index; i < CODES_ROOM; i += WORKGROUP) {
    shares[i] = NF4_CODES[i / COPIES];
  }
}

// `shifted` has the code at bits 5 to 8, where its place in the table has it.
fn code(shifted: u32, copy: u32) -> f32 {
  return shares[(shifted & 0x1e0u) | copy];
}

fn codes8(word: u32, index: u32) -> Eight {
  let copy = index % COPIES;
  return Eight(vec4<f32>(code(word << 1u, copy), code(word << 5u, copy), code(word >> 7u, copy), code(word >> 3u, copy)),
               vec4<f32>(code(word >> 15u, copy), code(word >> 11u, copy), code(word >> 23u, copy), code(word >> 19u, copy)));
}
