// Products of a few rows (at most ROWS_M) with a weight in NF4, or of LoRA's A; contract and formulas: nf4_vec.h. A group of
// LANES invocations computes PAIRS pairs of outputs: neighbours, or with SWIGLU one of each half of the weight. Its lanes share
// the inner dimension, 16 elements at a time, and their sums are added as a tree. Of a norm the weight goes to x on the way,
// and the inverse root of the mean square, summed along, to the result.
//
// Prelude: ROWS_M, PAIRS, LANES, GROUPS, NORM, PLUS, SWIGLU, LORA. codes4(word, lane) gives four codes (lib/vec_codes_*.wgsl).

struct Params {
  rows: u32,
  outputs: u32,  // of y
  inputs: u32,
  rank: u32,
  first_end: u32,
  second_end: u32,
  adapted: u32,  // a bit for each projection that has an adapter
  eps: f32,
  scaling: f32,
  hidden: u32,  // columns of h
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> norm: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

const WORKGROUP = LANES * GROUPS;
const OUTPUTS = 2u * PAIRS;               // of a group
const SUMS = (OUTPUTS + 1u) * ROWS_M;     // of each of them, a row each, and of squares
var<workgroup> shares: array<f32, SUMS * WORKGROUP>;

// Four vectors of x, and the sum of their squares before the norm's weight.
struct Sixteen {
  values: array<vec4<f32>, 4>,
  squares: f32,
}

fn sixteen(row: u32, i: u32) -> Sixteen {
  var result: Sixteen;
  let first = min(row, params.rows - 1u) * (params.inputs / 4u) + 4u * i;
  for (var v = 0u; v < 4u; v++) {
    result.values[v] = x[first + v];
    if (NORM) {
      result.squares += dot(result.values[v], result.values[v]);
      result.values[v] *= norm[4u * i + v];
    }
  }
  return result;
}

// Adds up the shares of each group's lanes, to its first.
fn add_up(index: u32, lane: u32) {
  for (var half = LANES / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (lane < half) {
      for (var s = 0u; s < SUMS; s++) {
        shares[s * WORKGROUP + index] += shares[s * WORKGROUP + index + half];
      }
    }
  }
  workgroupBarrier();
}

fn factor_of(row: u32, group_first: u32) -> f32 {
  if (!NORM) {
    return 1.0;
  }
  return 1.0 / sqrt(shares[(OUTPUTS * ROWS_M + row) * WORKGROUP + group_first] / f32(params.inputs) + params.eps);
}

@group(0) @binding(4) var<storage, read> packed: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read> absmax: array<f32>;
@group(0) @binding(6) var<storage, read> plus: array<f32>;
@group(0) @binding(7) var<storage, read> h: array<f32>;
@group(0) @binding(8) var<storage, read> b0: array<f32>;
@group(0) @binding(9) var<storage, read> b1: array<f32>;
@group(0) @binding(10) var<storage, read> b2: array<f32>;

// scaling * h b^T of one output of the weight.
fn share_of_adapters(row: u32, output: u32) -> f32 {
  let projection = u32(output >= params.first_end) + u32(output >= params.second_end);
  if (((params.adapted >> projection) & 1u) == 0u) {
    return 0.0;
  }
  let at = row * params.hidden + projection * params.rank;
  let column = (output - select(0u, select(params.first_end, params.second_end, projection == 2u), projection > 0u)) * params.rank;
  var sum = 0.0;
  for (var r = 0u; r < params.rank; r++) {
    var b = 0.0;
    if (projection == 0u) {
      b = b0[column + r];
    } else if (projection == 1u) {
      b = b1[column + r];
    } else {
      b = b2[column + r];
    }
    sum += h[at + r] * b;
  }
  return params.scaling * sum;
}

fn silu(g: f32) -> f32 {
  return g / (1.0 + exp(-max(g, -87.0)));
}

// The weight's row of output `j` of a group.
fn output_of(first_pair: u32, j: u32) -> u32 {
  if (SWIGLU) {
    return first_pair + j / 2u + (j % 2u) * params.outputs;
  }
  return 2u * first_pair + j;
}

// Of row m, the output `j` of a group.
fn result_of(m: u32, j: u32, first_pair: u32, own: u32, factor: f32) -> f32 {
  let sum = shares[(j * ROWS_M + m) * WORKGROUP + own] * factor;
  if (LORA) {
    return sum + share_of_adapters(m, output_of(first_pair, j));
  }
  return sum;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) index: u32) {
  prepare_codes(index, WORKGROUP);
  let lane = index % LANES;
  let first_pair = (linear_workgroup(group, groups) * GROUPS + index / LANES) * PAIRS;
  let last = select(params.outputs, 2u * params.outputs, SWIGLU) - 1u;
  let steps = params.inputs / 16u;
  var sums: array<f32, SUMS>;
  for (var i = lane; i < steps; i += LANES) {
    var weights: array<array<vec4<f32>, 4>, OUTPUTS>;
    for (var j = 0u; j < OUTPUTS; j++) {
      let at = min(output_of(first_pair, j), last) * steps + i;
      let bits = packed[at];
      let scale = absmax[at / 4u];
      weights[j] = array<vec4<f32>, 4>(codes4(bits.x, index) * scale, codes4(bits.x >> 16u, index) * scale,
                                       codes4(bits.y, index) * scale, codes4(bits.y >> 16u, index) * scale);
    }
    for (var m = 0u; m < ROWS_M; m++) {
      let values = sixteen(m, i);
      for (var j = 0u; j < OUTPUTS; j++) {
        sums[j * ROWS_M + m] += dot(values.values[0], weights[j][0]) + dot(values.values[1], weights[j][1]) +
                                dot(values.values[2], weights[j][2]) + dot(values.values[3], weights[j][3]);
      }
      sums[OUTPUTS * ROWS_M + m] += values.squares;
    }
  }
  for (var s = 0u; s < SUMS; s++) {
    shares[s * WORKGROUP + index] = sums[s];
  }
  add_up(index, lane);
  let own = index - lane;
  // Lanes share the results: of SwiGLU a pair makes one.
  const RESULTS = select(OUTPUTS, PAIRS, SWIGLU);
  for (var t = lane; t < params.rows * RESULTS; t += LANES) {
    let m = t / RESULTS;
    let r = t % RESULTS;
    let output = select(2u * first_pair, first_pair, SWIGLU) + r;
    if (output >= params.outputs) {
      continue;
    }
    let factor = factor_of(m, own);
    let at = m * params.outputs + output;
    if (SWIGLU) {
      y[at] = silu(result_of(m, 2u * r, first_pair, own, factor)) * result_of(m, 2u * r + 1u, first_pair, own, factor);
    } else {
      y[at] = select(0.0, plus[at], PLUS) + result_of(m, r, first_pair, own, factor);
    }
  }
}

@group(0) @binding(4) var<storage, read> a0: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> a1: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> a2: array<vec4<f32>>;

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

@compute @workgroup_size(WORKGROUP)
fn lora(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) index: u32) {
  let lane = index % LANES;
  let first = (linear_workgroup(group, groups) * GROUPS + index / LANES) * OUTPUTS;
  var sums: array<f32, SUMS>;
  for (var i = lane; i < params.inputs / 16u; i += LANES) {
    for (var m = 0u; m < ROWS_M; m++) {
      let values = sixteen(m, i);
      for (var j = 0u; j < OUTPUTS; j++) {
        let column = min(first + j, params.outputs - 1u);
        for (var v = 0u; v < 4u; v++) {
          sums[j * ROWS_M + m] += dot(values.values[v], a_at(column, 4u * i + v));
        }
      }
      sums[OUTPUTS * ROWS_M + m] += values.squares;
    }
  }
  for (var s = 0u; s < SUMS; s++) {
    shares[s * WORKGROUP + index] = sums[s];
  }
  add_up(index, lane);
  let own = index - lane;
  for (var t = lane; t < params.rows * OUTPUTS; t += LANES) {
    let m = t / OUTPUTS;
    let column = first + t % OUTPUTS;
    if (column < params.outputs) {
      y[m * params.outputs + column] = shares[(t % OUTPUTS * ROWS_M + m) * WORKGROUP + own] * factor_of(m, own);
    }
  }
}
