// Rows of NF4: a word holds eight codes, a block of 64 elements of the flattened matrix shares one absmax.
@group(0) @binding(3) var<storage, read> packed: array<u32>;
@group(0) @binding(4) var<storage, read> absmax: array<f32>;

fn eight(row: u32, i: u32) -> Eight {
  let at = row * (params.inputs / 8u) + i;
  let word = packed[at];
  let scale = absmax[at / 8u];
  return Eight(nf4_codes4(word) * scale, nf4_codes4(word >> 16u) * scale);
}
