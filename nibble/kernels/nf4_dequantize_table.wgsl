// nf4_dequantize.wgsl for GPUs and f16: codes come from a table in workgroup memory, which takes fewer instructions than
// choosing bit by bit. An invocation decodes WORDS words, neighbours neighbouring ones, and writes
// the eight elements of each at once.
struct Params {
  rows: RowsSum,  // of lib/lora_rows_sum.wgsl
  count: u32,
  factor: f32,
  carriers: u32,  // of lib/carry.wgsl
  cargo_first: u32,
  cargo_rounds: u32,
  workgroups: u32,  // of lib/decodes.wgsl
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> packed: array<u32>;
@group(0) @binding(2) var<storage, read> absmax: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<u32>>;

fn four(word: u32, scale: f32) -> vec2<u32> {
  return bitcast<vec2<u32>>(vec4<f16>(four_codes(word) * scale));
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  load_codes(lane);
  var piece = 0u;
  if (!decodes(linear_workgroup(group, groups), lane, &piece)) {
    return;
  }
  let first = piece * (WORKGROUP * WORDS) + lane;
  // Loads of their own, so that all are on their way at once.
  var words: array<u32, WORDS>;
  var scales: array<f32, WORDS>;
  for (var n = 0u; n < WORDS; n++) {
    let i = min(first + WORKGROUP * n, params.count - 1u);
    words[n] = packed[i];
    scales[n] = absmax[i / 8u] * params.factor;
  }
  for (var n = 0u; n < WORDS; n++) {
    let i = first + WORKGROUP * n;
    if (i < params.count) {
      out[i] = vec4<u32>(four(words[n], scales[n]), four(words[n] >> 16u, scales[n]));
    }
  }
}
