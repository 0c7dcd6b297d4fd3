// The code book in workgroup memory, COPIES times, so that lanes which look up different codes meet different banks.
// NF4_CODES is nibble/base/nf4_table.h.
var<workgroup> codes: array<f32, 16u * COPIES>;

fn prepare_codes(index: u32, invocations: u32) {
  for (var i = index; i < 16u * COPIES; i += invocations) {
    codes[i] = NF4_CODES[i / COPIES];
  }
  workgroupBarrier();
}

fn codes4(word: u32, index: u32) -> vec4<f32> {
  let copy = index % COPIES;
  let at = ((vec4<u32>(word) >> vec4<u32>(4u, 0u, 12u, 8u)) & vec4<u32>(15u)) * COPIES + copy;
  return vec4<f32>(codes[at.x], codes[at.y], codes[at.z], codes[at.w]);
}
