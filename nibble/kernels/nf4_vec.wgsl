// Products of a few rows (at most ROWS_M) with a weight in NF4; contract and formulas: nf4_vec.h. A group of LANES invocations
// computes OUTPUTS outputs, in pairs: neighbours, or with SWIGLU one of each half of the weight. Its lanes share the inner
// dimension, 8 elements (a word of codes) at a time, so that neighbours read neighbouring words of the weight and of x; their
// sums are added in a fixed order. Of a norm the weight goes to x on the way, and the inverse root of the mean square, summed
// along, to the result.
//
// Prelude: ROWS_M, OUTPUTS (4 or 8), LANES, GROUPS, NORM, PLUS, SWIGLU, LORA. codes8(word, index) gives the codes of a word,
// after prepare_codes(index) and a barrier (lib/vec_codes_*.wgsl); params: lib/vec_params.wgsl; share_of_adapters:
// lib/vec_adapters*.wgsl.

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> norm: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read> packed: array<u32>;
@group(0) @binding(5) var<storage, read> absmax: array<f32>;
@group(0) @binding(6) var<storage, read> plus: array<f32>;

const WORKGROUP = LANES * GROUPS;
const SUMS = OUTPUTS + 1u;       // of a row: of each output, and of squares
const STRIDE = WORKGROUP + 8u;   // of a sum's shares: lanes that add up different sums meet different banks
const PARTS = min(8u, LANES);    // values that a sum is left in
// Codes while products are summed, then the lanes' shares of one row.
var<workgroup> shares: array<f32, max(CODES_ROOM, SUMS * STRIDE)>;
const ADAPTER_PARTS = OUTPUTS * ROWS_M * 8u;  // of a group
var<workgroup> adapters: array<f32, select(1u, ADAPTER_PARTS * GROUPS, LORA)>;

struct Eight {
  low: vec4<f32>,
  high: vec4<f32>,
}

// Words of four outputs with their blocks' scales.
struct Words {
  codes: vec4<u32>,
  scale: vec4<f32>,
}

// The weight's row of output `j` of a group.
fn output_of(first_pair: u32, j: u32) -> u32 {
  if (SWIGLU) {
    return first_pair + j / 2u + (j % 2u) * params.outputs;
  }
  return 2u * first_pair + j;
}

// Word i of the group's outputs from j on.
fn words_of(first_pair: u32, j: u32, i: u32) -> Words {
  let last = select(params.outputs, 2u * params.outputs, SWIGLU) - 1u;
  let row = vec4<u32>(output_of(first_pair, j), output_of(first_pair, j + 1u), output_of(first_pair, j + 2u),
                      output_of(first_pair, j + 3u));
  let at = min(row, vec4<u32>(last)) * (params.inputs / 8u) + i;
  let block = at / 8u;
  return Words(vec4<u32>(packed[at.x], packed[at.y], packed[at.z], packed[at.w]),
               vec4<f32>(absmax[block.x], absmax[block.y], absmax[block.z], absmax[block.w]));
}

fn prepare_adapters(first_pair: u32, lane: u32, group: u32) {
  let last = select(params.outputs, 2u * params.outputs, SWIGLU) - 1u;
  for (var t = lane; t < ADAPTER_PARTS; t += LANES) {
    let row = t / (8u * OUTPUTS);
    if (row < params.rows) {
      let output = min(output_of(first_pair, t / 8u % OUTPUTS), last);
      adapters[group * ADAPTER_PARTS + t] = share_of_adapters(row, output, t % 8u);
    }
  }
}

// Adds up the shares of each group's lanes, into the first PARTS of them.
fn add_up(own: u32, lane: u32) {
  for (var t = lane; t < SUMS * PARTS; t += LANES) {
    let at = t / PARTS * STRIDE + own + t % PARTS;
    var sum = shares[at];
    for (var k = PARTS; k < LANES; k += PARTS) {
      sum += shares[at + k];
    }
    shares[at] = sum;
  }
}

fn total(sum: u32, own: u32) -> f32 {
  var result = 0.0;
  for (var p = 0u; p < PARTS; p++) {
    result += shares[sum * STRIDE + own + p];
  }
  return result;
}

// Of row m, the output `j` of a group.
fn result_of(m: u32, j: u32, own: u32, factor: f32) -> f32 {
  var result = total(j, own) * factor;
  if (LORA) {
    let first = own / LANES * ADAPTER_PARTS + (m * OUTPUTS + j) * 8u;
    for (var p = 0u; p < 8u; p++) {
      result += adapters[first + p];
    }
  }
  return result;
}

fn write_results(m: u32, first_pair: u32, own: u32, lane: u32) {
  // Of SwiGLU a pair makes one.
  const RESULTS = select(OUTPUTS, OUTPUTS / 2u, SWIGLU);
  for (var r = lane; r < RESULTS; r += LANES) {
    let output = select(2u * first_pair, first_pair, SWIGLU) + r;
    if (output >= params.outputs) {
      continue;
    }
    var factor = 1.0;
    if (NORM) {
      factor = 1.0 / sqrt(total(OUTPUTS, own) / f32(params.inputs) + params.eps);
    }
    let at = m * params.outputs + output;
    if (SWIGLU) {
      y[at] = silu(result_of(m, 2u * r, own, factor)) * result_of(m, 2u * r + 1u, own, factor);
    } else {
      y[at] = select(0.0, plus[at], PLUS) + result_of(m, r, own, factor);
    }
  }
}

// One row's sums, in named members: compilers may leave an array that a loop indexes in memory.
struct RowSums {
  first: vec4<f32>,   // of outputs 0 to 3
  second: vec4<f32>,  // of outputs 4 to 7
  squares: f32,
}
alias Sums = array<RowSums, ROWS_M>;
alias Values = array<Eight, ROWS_M>;  // of x

fn read_values(i: u32, values: ptr<function, Values>, sums: ptr<function, Sums>) {
  for (var m = 0u; m < ROWS_M; m++) {
    let at = min(m, params.rows - 1u) * (params.inputs / 4u) + 2u * i;
    var low = x[at];
    var high = x[at + 1u];
    if (NORM) {
      (*sums)[m].squares += dot(low, low) + dot(high, high);
      low *= norm[2u * i];
      high *= norm[2u * i + 1u];
    }
    (*values)[m] = Eight(low, high);
  }
}

fn dot8(a: Eight, b: Eight) -> f32 {
  return dot(a.low, b.low) + dot(a.high, b.high);
}

// A block's scale is that of its sum.
fn add_products(words: Words, second: bool, index: u32, values: ptr<function, Values>, sums: ptr<function, Sums>) {
  let a = codes8(words.codes.x, index);
  let b = codes8(words.codes.y, index);
  let c = codes8(words.codes.z, index);
  let d = codes8(words.codes.w, index);
  for (var m = 0u; m < ROWS_M; m++) {
    let value = (*values)[m];
    let products = vec4<f32>(dot8(value, a), dot8(value, b), dot8(value, c), dot8(value, d)) * words.scale;
    if (second) {
      (*sums)[m].second += products;
    } else {
      (*sums)[m].first += products;
    }
  }
}

fn put_four(first: u32, values: vec4<f32>, index: u32) {
  shares[first * STRIDE + index] = values.x;
  shares[(first + 1u) * STRIDE + index] = values.y;
  shares[(first + 2u) * STRIDE + index] = values.z;
  shares[(first + 3u) * STRIDE + index] = values.w;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) index: u32) {
  let lane = index % LANES;
  let own = index - lane;
  let first_pair = (linear_workgroup(group, groups) * GROUPS + index / LANES) * (OUTPUTS / 2u);
  let words = params.inputs / 8u;
  // The weight is read one step ahead, first of all while codes and adapters are prepared.
  var next = words_of(first_pair, 0u, min(lane, words - 1u));
  var next_four: Words;
  if (OUTPUTS > 4u) {
    next_four = words_of(first_pair, 4u, min(lane, words - 1u));
  }
  prepare_codes(index);
  if (LORA) {
    prepare_adapters(first_pair, lane, index / LANES);
  }
  workgroupBarrier();
  var sums: Sums;
  var values: Values;
  for (var i = lane; i < words; i += LANES) {
    let now = next;
    let now_four = next_four;
    next = words_of(first_pair, 0u, min(i + LANES, words - 1u));
    if (OUTPUTS > 4u) {
      next_four = words_of(first_pair, 4u, min(i + LANES, words - 1u));
    }
    read_values(i, &values, &sums);
    add_products(now, false, index, &values, &sums);
    if (OUTPUTS > 4u) {
      add_products(now_four, true, index, &values, &sums);
    }
  }
  for (var m = 0u; m < ROWS_M; m++) {
    workgroupBarrier();
    put_four(0u, sums[m].first, index);
    if (OUTPUTS > 4u) {
      put_four(4u, sums[m].second, index);
    }
    shares[OUTPUTS * STRIDE + index] = sums[m].squares;
    workgroupBarrier();
    add_up(own, lane);
    workgroupBarrier();
    if (m < params.rows) {
      write_results(m, first_pair, own, lane);
    }
  }
}
