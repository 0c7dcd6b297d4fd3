// Hidden values of the adapters of up to three projections for a few rows (at most ROWS_M); contract and formula: nf4_vec.h. A
// workgroup computes COLUMNS of them: its LANES invocations share the inner dimension, and their sums are added as a tree. Of a
// norm the weight goes to x on the way, and the inverse root of the mean square, summed along, to the result.
//
// Prelude: ROWS_M, COLUMNS, LANES, NORM.

struct Params {
  rows: u32,
  columns: u32,  // of h
  inputs: u32,
  rank: u32,
  eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> norm: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> h: array<f32>;
@group(0) @binding(4) var<storage, read> a0: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> a1: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> a2: array<vec4<f32>>;

const SUMS = (COLUMNS + 1u) * ROWS_M;  // of each column, a row each, and of squares
var<workgroup> shares: array<f32, SUMS * LANES>;

// Vector `v` of row `column` of the three A.
fn a_at(column: u32, v: u32) -> vec4<f32> {
  let vectors = params.inputs / 4u;
  if (column < params.rank) {
    return a0[column * vectors + v];
  }
  if (column < 2u * params.rank) {
    return a1[(column - params.rank) * vectors + v];
  }
  return a2[(column - 2u * params.rank) * vectors + v];
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let first = linear_workgroup(group, groups) * COLUMNS;
  let vectors = params.inputs / 4u;
  var sums: array<f32, SUMS>;
  for (var v = lane; v < vectors; v += LANES) {
    var a: array<vec4<f32>, COLUMNS>;
    for (var c = 0u; c < COLUMNS; c++) {
      a[c] = a_at(min(first + c, params.columns - 1u), v);
    }
    for (var m = 0u; m < ROWS_M; m++) {
      var value = x[min(m, params.rows - 1u) * vectors + v];
      if (NORM) {
        sums[COLUMNS * ROWS_M + m] += dot(value, value);
        value *= norm[v];
      }
      for (var c = 0u; c < COLUMNS; c++) {
        sums[c * ROWS_M + m] += dot(value, a[c]);
      }
    }
  }
  for (var s = 0u; s < SUMS; s++) {
    shares[s * LANES + lane] = sums[s];
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
  for (var t = lane; t < params.rows * COLUMNS; t += LANES) {
    let m = t / COLUMNS;
    let column = first + t % COLUMNS;
    if (column < params.columns) {
      var factor = 1.0;
      if (NORM) {
        factor = 1.0 / sqrt(shares[(COLUMNS * ROWS_M + m) * LANES] / f32(params.inputs) + params.eps);
      }
      h[m * params.columns + column] = shares[(t % COLUMNS * ROWS_M + m) * LANES] * factor;
    }
  }
}
