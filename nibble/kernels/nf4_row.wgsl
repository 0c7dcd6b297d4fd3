// The product of one row of x, or of ROWS_M, with a weight in NF4, for GPUs whose subgroups have one size; contract and formulas: nf4_vec.h.
// A lane of a workgroup keeps 16 elements of each in registers and meets the same elements of all ROWS rows of the weight, OUTPUTS at a
// time, of which the next are on their way meanwhile; a code is looked up once. Outputs come in pairs: neighbours, or with SWIGLU one of each half of the
// weight. A subgroup adds up its lanes' shares in a fixed order, and the subgroups' are added in theirs at the end. Of a norm the
// weight goes to x on the way, and the inverse root of the mean square, summed along, to the result.
//
// Prelude: ROWS_M; SUBGROUP, at least 8; LANES, a multiple of it; OUTPUTS, 4 or 8; STEPS; NORM, PLUS, SWIGLU, LORA. code:
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

const SHARES = (ROWS + 1u) * SUBGROUPS;  // of each row of the weight, then of squares

var<workgroup> shares: array<f32, SHARES * ROWS_M>;
var<workgroup> adapters: array<f32, select(1u, 8u * ROWS * ROWS_M, LORA)>;

alias Lane = array<vec4<f32>, 4>;         // a lane's elements of a row of x
alias Sums = array<vec4<f32>, ROWS_M>;    // of four rows of the weight with each row of x

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

// Of four rows' words the elements at `shift`.
fn codes_of(words: vec4<u32>, shift: u32) -> vec4<f32> {
  // With two copies of the book in a subgroup the next code's last bit is no matter, and the mask is what a shuffle does anyway.
  let at = (words >> vec4<u32>(shift)) & vec4<u32>(select(15u, 31u, SUBGROUP >= 32u));
  return vec4<f32>(code(at.x), code(at.y), code(at.z), code(at.w));
}

// Of four words the elements of vector `part` of x, four that begin at `shift`.
fn add_four(sums: ptr<function, Sums>, words: vec4<u32>, shift: u32, values: ptr<function, array<Lane, ROWS_M>>, part: u32) {
  let a = codes_of(words, shift + 4u);
  let b = codes_of(words, shift);
  let c = codes_of(words, shift + 12u);
  let d = codes_of(words, shift + 8u);
  for (var m = 0u; m < ROWS_M; m++) {
    let value = (*values)[m][part];
    (*sums)[m] = fma(d, value.wwww, fma(c, value.zzzz, fma(b, value.yyyy, fma(a, value.xxxx, (*sums)[m]))));
  }
}

fn products_of(four: Four, values: ptr<function, array<Lane, ROWS_M>>) -> Sums {
  var sums: Sums;
  add_four(&sums, four.first, 0u, values, 0u);
  add_four(&sums, four.first, 16u, values, 1u);
  add_four(&sums, four.second, 0u, values, 2u);
  add_four(&sums, four.second, 16u, values, 3u);
  for (var m = 0u; m < ROWS_M; m++) {
    sums[m] *= four.scale;
  }
  return sums;
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
  for (var t = lane; t < 8u * ROWS * ROWS_M; t += LANES) {
    adapters[t] = share_of_adapters(params.first_row + t / (8u * ROWS), row_of(first_pair, t / 8u % ROWS), t % 8u);
  }
}

fn total(m: u32, row: u32) -> f32 {
  var sum = 0.0;
  for (var s = 0u; s < SUBGROUPS; s++) {
    sum += shares[m * SHARES + row * SUBGROUPS + s];
  }
  return sum;
}

fn result_of(m: u32, row: u32, factor: f32) -> f32 {
  var result = total(m, row) * factor;
  if (LORA) {
    for (var p = 0u; p < 8u; p++) {
      result += adapters[8u * (m * ROWS + row) + p];
    }
  }
  return result;
}

fn write_result(first_pair: u32, m: u32, r: u32) {
  let output = select(2u * first_pair, first_pair, SWIGLU) + r;
  if (output >= params.outputs) {
    return;
  }
  var factor = 1.0;
  if (NORM) {
    factor = 1.0 / sqrt(total(m, ROWS) / f32(params.inputs) + params.eps);
  }
  let at = (params.first_row + m) * params.outputs + output;
  if (SWIGLU) {
    y[at] = silu(result_of(m, 2u * r, factor)) * result_of(m, 2u * r + 1u, factor);
  } else {
    y[at] = select(0.0, plus[at], PLUS) + result_of(m, r, factor);
  }
}

// Of each row of x the sum of a subgroup's squares.
fn put_squares(squares: array<f32, ROWS_M>, subgroup: u32, invocation: u32) {
  for (var m = 0u; m < ROWS_M; m++) {
    var sum = squares[m];
    for (var i = 1u; i < SUBGROUP; i *= 2u) {
      sum += subgroupShuffleXor(sum, i);
    }
    if (invocation == 0u) {
      shares[m * SHARES + ROWS * SUBGROUPS + subgroup] = sum;
    }
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
  var values: array<Lane, ROWS_M>;
  var squares: array<f32, ROWS_M>;
  for (var m = 0u; m < ROWS_M; m++) {
    for (var i = 0u; i < 4u; i++) {
      values[m][i] = select(vec4<f32>(), x[4u * ((params.first_row + m) * columns + column) + i], lane < columns);
      if (NORM) {
        squares[m] += dot(values[m][i], values[m][i]);
        values[m][i] *= norm[4u * column + i];
      }
    }
  }
  prepare_codes(invocation);
  if (LORA) {
    prepare_adapters(first_pair, lane);
  }
  for (var step = 0u; step < STEPS; step++) {
    let more = step + 1u < STEPS;
    let after = (step + 1u) * OUTPUTS;
    let first = products_of(next, &values);
    if (more) {
      next = four_of(first_pair, after, column);
    }
    var second: Sums;
    if (OUTPUTS == 8u) {
      second = products_of(next_four, &values);
      if (more) {
        next_four = four_of(first_pair, after + 4u, column);
      }
    }
    for (var m = 0u; m < ROWS_M; m++) {
      let sum = sum_of_lanes(first[m], second[m], invocation);
      if (invocation < OUTPUTS) {
        shares[m * SHARES + (step * OUTPUTS + invocation) * SUBGROUPS + subgroup] = sum;
      }
    }
  }
  if (NORM) {
    put_squares(squares, subgroup, invocation);
  }
  workgroupBarrier();
  for (var r = lane; r < RESULTS * ROWS_M; r += LANES) {
    write_result(first_pair, r / RESULTS, r % RESULTS);
  }
}
