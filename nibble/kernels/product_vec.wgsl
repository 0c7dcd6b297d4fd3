// y(M, N) [=|+=] scale * row_scale[m] * x(M, K) * w(N, K)^T for a few rows (M <= ROWS_M), as generation has them: bound by the
// reading of w. f32 arithmetic. A workgroup computes ROWS_N columns of y: its LANES invocations share the inner dimension,
// 8 elements at a time (K is a multiple of 8), and their sums are added as a tree of fixed order.
// eight(n, i) gives the elements 8i .. 8i + 7 of row n of w (lib/eight_*.wgsl). y's rows have `stride` columns, of which the N
// from `first` on are written.
struct Params {
  rows: u32,
  outputs: u32,
  inputs: u32,
  stride: u32,
  first: u32,
  scale: f32,
}
struct Eight {
  low: vec4<f32>,
  high: vec4<f32>,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<ElementX>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

const SUMS = ROWS_M * ROWS_N;
var<workgroup> shares: array<f32, SUMS * LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let column = linear_workgroup(group, groups) * ROWS_N;
  var sum: array<f32, SUMS>;
  for (var i = lane; i < params.inputs / 8u; i += LANES) {
    var b: array<Eight, ROWS_N>;
    for (var n = 0u; n < ROWS_N; n++) {
      b[n] = eight(min(column + n, params.outputs - 1u), i);
    }
    for (var m = 0u; m < ROWS_M; m++) {
      let at = min(m, params.rows - 1u) * (params.inputs / 4u) + 2u * i;
      let low = vec4<f32>(x[at]);
      let high = vec4<f32>(x[at + 1u]);
      for (var n = 0u; n < ROWS_N; n++) {
        sum[m * ROWS_N + n] += dot(low, b[n].low) + dot(high, b[n].high);
      }
    }
  }
  for (var s = 0u; s < SUMS; s++) {
    shares[s * LANES + lane] = sum[s];
  }
  for (var half = LANES / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (lane < half) {
      for (var s = 0u; s < SUMS; s++) {
        shares[s * LANES + lane] += shares[s * LANES + lane + half];
      }
    }
  }
  workgroupBarrier();
  for (var s = lane; s < SUMS; s += LANES) {
    let m = s / ROWS_N;
    let n = column + s % ROWS_N;
    if (m < params.rows && n < params.outputs) {
      let at = m * params.stride + params.first + n;
      y[at] = select(0.0, y[at], ACCUMULATE) + params.scale * row_scale(m) * shares[s * LANES];
    }
  }
}
