// The product of one row with a weight in NF4, for GPUs whose subgroups have one size; contract and formulas: nf4_vec.h. A lane
// of a workgroup keeps 16 elements of x in registers and meets the same elements of all ROWS rows of the weight, OUTPUTS at a
// time, of which the next are on their way meanwhile. Outputs come in pairs: neighbours, or with SWIGLU one of each half of the
// weight. A subgroup adds up its lanes' shares in a fixed order, and the subgroups' are added in theirs at the end. Of a norm the
// weight goes to x on the way, and the inverse root of the mean square, summed along, to the result.
//
// Prelude: SUBGROUP, at least 8; LANES, a multiple of it; OUTPUTS, 4 or 8; STEPS; NORM, PLUS, SWIGLU, LORA. code:
// lib/subgroup_codes.wgsl; sum_of_four: lib/subgroup_sums.wgsl; params: lib/vec_params.wgsl; share_of_adapters: lib/vec_adapters*.wgsl.

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> norm: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read> packed: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read> absmax: array<f32>;
@group(0) @binding(6) var<storage, read> plus: array<f32>;

const ROWS = OUTPUTS * STEPS;
const SUBGROUPS = LANES / SUBGROUP;
const RESULTS = select(ROWS, ROWS / 2u, SWIGLU);
const ELEMENTS = 16u;  // of a lane
const BLOCK_LANES = 64u / ELEMENTS;

var<workgroup> shares: array<f32, (ROWS + 1u) * SUBGROUPS>;  // of each row, then of squares
var<workgroup> adapters: array<f32, select(1u, 8u * ROWS, LORA)>;

// A lane's codes of four rows, with the scales of their blocks.
struct Four {
  first: vec4<u32>,  // eight elements of each
  second: vec4<u32>,
  scale: vec4<f32>,
}

// The weight's row `j` of a workgroup.
fn row_of(first_pair: u32, j: u32) -> u32 {
  if (SWIGLU) {
    return min(first_pair + j / 2u, params.outputs - 1u) + (j % 2u) * params.outputs;
  }
  return min(2u * first_pair + j, params.outputs - 1u);
}

fn four_of(first_pair: u32, j: u32, column: u32) -> Four {
  let row = vec4<u32>(row_of(first_pair, j), row_of(first_pair, j + 1u), row_of(first_pair, j + 2u), row_of(first_pair, j + 3u));
  let at = row * (params.inputs / ELEMENTS) + column;
  let block = at / BLOCK_LANES;
  let a = packed[at.x];
  let b = packed[at.y];
  let c = packed[at.z];
  let d = packed[at.w];
  return Four(vec4<u32>(a.x, b.x, c.x, d.x), vec4<u32>(a.y, b.y, c.y, d.y),
              vec4<f32>(absmax[block.x], absmax[block.y], absmax[block.z], absmax[block.w]));
}

// Of four rows' words the elements at `shift` with their common factor.
fn add_element(sums: vec4<f32>, words: vec4<u32>, shift: u32, value: f32) -> vec4<f32> {
  // With two copies of the book in a subgroup the next code's last bit is no matter, and the mask is what a shuffle does anyway.
  let at = (words >> vec4<u32>(shift)) & vec4<u32>(select(15u, 31u, SUBGROUP >= 32u));
  return fma(vec4<f32>(code(at.x), code(at.y), code(at.z), code(at.w)), vec4<f32>(value), sums);
}

fn add_eight(sums: vec4<f32>, words: vec4<u32>, low: vec4<f32>, high: vec4<f32>) -> vec4<f32> {
  var result = add_element(sums, words, 4u, low.x);
  result = add_element(result, words, 0u, low.y);
  result = add_element(result, words, 12u, low.z);
  result = add_element(result, words, 8u, low.w);
  result = add_element(result, words, 20u, high.x);
  result = add_element(result, words, 16u, high.y);
  result = add_element(result, words, 28u, high.z);
  return add_element(result, words, 24u, high.w);
}

fn products_of(four: Four, values: array<vec4<f32>, 4>) -> vec4<f32> {
  let first = add_eight(vec4<f32>(), four.first, values[0], values[1]);
  return add_eight(first, four.second, values[2], values[3]) * four.scale;
}

// Leaves in lane i of a subgroup the lanes' sum of value i % 4, or of i % 8: each exchange adds two lanes' shares of half the
// values that are left.
fn sum_of_lanes(first: vec4<f32>, second: vec4<f32>, lane: u32) -> f32 {
  var sum = 0.0;
  if (OUTPUTS == 8u) {
    let upper = (lane & 4u) != 0u;
    sum = sum_of_four(select(first, second, upper) + subgroupShuffleXor(select(second, first, upper), 4u), lane);
  } else {
    sum = sum_of_four(first, lane);
  }
  for (var i = OUTPUTS; i < SUBGROUP; i *= 2u) {
    sum += subgroupShuffleXor(sum, i);
  }
  return sum;
}

fn prepare_adapters(first_pair: u32, lane: u32) {
  for (var t = lane; t < 8u * ROWS; t += LANES) {
    adapters[t] = share_of_adapters(0u, row_of(first_pair, t / 8u), t % 8u);
  }
}

fn total(row: u32) -> f32 {
  var sum = 0.0;
  for (var s = 0u; s < SUBGROUPS; s++) {
    sum += shares[row * SUBGROUPS + s];
  }
  return sum;
}

fn result_of(row: u32, factor: f32) -> f32 {
  var result = total(row) * factor;
  if (LORA) {
    for (var p = 0u; p < 8u; p++) {
      result += adapters[8u * row + p];
    }
  }
  return result;
}

fn write_result(first_pair: u32, r: u32) {
  let output = select(2u * first_pair, first_pair, SWIGLU) + r;
  if (output >= params.outputs) {
    return;
  }
  var factor = 1.0;
  if (NORM) {
    factor = 1.0 / sqrt(total(ROWS) / f32(params.inputs) + params.eps);
  }
  if (SWIGLU) {
    y[output] = silu(result_of(2u * r, factor)) * result_of(2u * r + 1u, factor);
  } else {
    y[output] = select(0.0, plus[output], PLUS) + result_of(r, factor);
  }
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32, @builtin(subgroup_id) subgroup: u32,
        @builtin(subgroup_invocation_id) invocation: u32) {
  let first_pair = linear_workgroup(group, groups) * (ROWS / 2u);
  let columns = params.inputs / ELEMENTS;
  let column = min(lane, columns - 1u);
  var next = four_of(first_pair, 0u, column);
  var next_four: Four;
  if (OUTPUTS == 8u) {
    next_four = four_of(first_pair, 4u, column);
  }
  var values: array<vec4<f32>, 4>;
  var squares = 0.0;
  for (var i = 0u; i < 4u; i++) {
    values[i] = select(vec4<f32>(), x[4u * column + i], lane < columns);
    if (NORM) {
      squares += dot(values[i], values[i]);
      values[i] *= norm[4u * column + i];
    }
  }
  prepare_codes(invocation);
  if (LORA) {
    prepare_adapters(first_pair, lane);
  }
  for (var step = 0u; step < STEPS; step++) {
    let more = step + 1u < STEPS;
    let after = (step + 1u) * OUTPUTS;
    let first = products_of(next, values);
    if (more) {
      next = four_of(first_pair, after, column);
    }
    var second: vec4<f32>;
    if (OUTPUTS == 8u) {
      second = products_of(next_four, values);
      if (more) {
        next_four = four_of(first_pair, after + 4u, column);
      }
    }
    let sum = sum_of_lanes(first, second, invocation);
    if (invocation < OUTPUTS) {
      shares[(step * OUTPUTS + invocation) * SUBGROUPS + subgroup] = sum;
    }
  }
  if (NORM) {
    for (var i = 1u; i < SUBGROUP; i *= 2u) {
      squares += subgroupShuffleXor(squares, i);
    }
    if (invocation == 0u) {
      shares[ROWS * SUBGROUPS + subgroup] = squares;
    }
  }
  workgroupBarrier();
  for (var r = lane; r < RESULTS; r += LANES) {
    write_result(first_pair, r);
  }
}
