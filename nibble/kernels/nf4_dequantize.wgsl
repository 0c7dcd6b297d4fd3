// out[i] = codes[nibble i] * absmax[i / 64] * factor, row-major over the flattened weight; factor is a power of two.
// Eight elements are one word of four bytes; a byte holds the first of its two in the high half. An invocation writes the
// eight elements of one word as two vectors. count is the number of words.
struct Params {
  rows: RowsSum,  // of lib/lora_rows_sum.wgsl
  count: u32,
  factor: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> packed: array<u32>;
@group(0) @binding(2) var<storage, read> absmax: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<Element>>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let number = linear_workgroup(group, groups);
  if (adds_rows(number, lane)) {
    return;
  }
  let i = (number - params.rows.groups) * 64u + lane;
  if (i >= params.count) {
    return;
  }
  let word = packed[i];
  let scale = absmax[i / 8u] * params.factor;
  out[2u * i] = vec4<Element>(nf4_codes4(word) * scale);
  out[2u * i + 1u] = vec4<Element>(nf4_codes4(word >> 16u) * scale);
}
