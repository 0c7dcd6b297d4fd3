// out[i] = code i * scales[i / 64] * factor, row-major over the flattened weight; factor is a power of two. A word holds four
// codes. count is the number of words.
struct Params {
  count: u32,
  factor: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> codes: array<u32>;
@group(0) @binding(2) var<storage, read> scales: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<Element>>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let i = linear_workgroup(group, groups) * 64u + lane;
  if (i < params.count) {
    out[i] = vec4<Element>(int8_codes4(codes[i]) * (scales[i / 16u] * params.factor));
  }
}
