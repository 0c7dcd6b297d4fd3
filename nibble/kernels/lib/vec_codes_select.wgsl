// Codes chosen bit by bit (nf4.wgsl), for processors, where a table's places would be read one by one.
fn prepare_codes(index: u32, invocations: u32) {
}

fn codes4(word: u32, index: u32) -> vec4<f32> {
  return nf4_codes4(word);
}
