// A workgroup's rows of a product of one token with a weight in NF4. A subgroup has a slice of SPAN inputs, ELEMENTS a lane in
// registers, and meets the same columns of all rows of its group of subgroups, four at a time, while the next eight rows' codes are on
// their way. Where there are more slices than subgroups the inputs are swept over in turns. Where inputs come from:
// lib/step_inputs_*.wgsl; how codes are looked up and multiplied: lib/step_lanes.wgsl, lib/step_pairs.wgsl.
@group(0) @binding(2) var<storage, read> qkv_codes: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read> qkv_absmax: array<f32>;
@group(0) @binding(4) var<storage, read> o_codes: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read> o_absmax: array<f32>;
@group(0) @binding(6) var<storage, read> gate_up_codes: array<vec2<u32>>;
@group(0) @binding(7) var<storage, read> gate_up_absmax: array<f32>;
@group(0) @binding(8) var<storage, read> down_codes: array<vec2<u32>>;
@group(0) @binding(9) var<storage, read> down_absmax: array<f32>;

const ELEMENTS = 16u;
const SPAN = SUBGROUP * ELEMENTS;
const SUBGROUPS = WORKGROUP / SUBGROUP;
const BLOCK_LANES = 64u / ELEMENTS;
const_assert BLOCK_LANES == 4u;  // sum_of_four adds up as many

// A product: its weight, its inputs, and rows of the weight in units of one, or for gate and up of a pair.
struct Product {
  weight: u32,
  inputs: u32,
  units: u32,
  halves: u32,
}
const QKV_PRODUCT = Product(0u, HIDDEN, QKV, 1u);
const O_PRODUCT = Product(1u, ATTENDED, HIDDEN, 1u);
const GATE_UP_PRODUCT = Product(2u, HIDDEN, INTERMEDIATE, 2u);
const DOWN_PRODUCT = Product(3u, INTERMEDIATE, HIDDEN, 1u);

fn is_normed(p: Product) -> bool {
  return p.weight == 0u || p.weight == 2u;
}
// Where the weights of the norm before a product are, among a layer's constants.
fn norm_of(p: Product) -> u32 {
  return select(MLP_NORM_AT, ATTENTION_NORM_AT, p.weight == 0u);
}

alias Inputs = array<vec4<f32>, 4>;  // a lane's, ELEMENTS

fn slices_of(inputs: u32) -> u32 {
  return (inputs + SPAN - 1u) / SPAN;
}
fn sweeps_of(inputs: u32) -> u32 {
  return (slices_of(inputs) + SUBGROUPS - 1u) / SUBGROUPS;
}
// Slices of a sweep.
fn width_of(inputs: u32) -> u32 {
  return (slices_of(inputs) + sweeps_of(inputs) - 1u) / sweeps_of(inputs);
}

// The inputs of a sweep.
fn first_of(p: Product, sweep: u32) -> u32 {
  return sweep * width_of(p.inputs) * SPAN;
}
fn count_of(p: Product, sweep: u32) -> u32 {
  return min(p.inputs - first_of(p, sweep), width_of(p.inputs) * SPAN);
}

// The units of a workgroup, [first, first + count).
struct Own {
  first: u32,
  count: u32,
}
fn own_units(units: u32, workgroup: u32) -> Own {
  let first = workgroup * units / WORKGROUPS;
  return Own(first, (workgroup + 1u) * units / WORKGROUPS - first);
}

// Where a subgroup is in a product: its rows among the workgroup's, and the lane's column of the weight, in ELEMENTS. Where the last slice
// has fewer than its lanes, those behind have the last column, but take nothing.
struct Walk {
  busy: bool,
  takes: bool,
  row: u32,
  slice: u32,
  column: u32,
}
fn rows_of_group(p: Product, own: Own) -> u32 {
  let groups = SUBGROUPS / width_of(p.inputs);
  return (own.count + groups - 1u) / groups * p.halves;
}
fn walk_of(p: Product, own: Own, sweep: u32, subgroup: u32, lane: u32) -> Walk {
  let width = width_of(p.inputs);
  let groups = SUBGROUPS / width;
  let group = subgroup / width;
  let rows = rows_of_group(p, own);
  let slice = sweep * width + subgroup % width;
  var walk: Walk;
  walk.busy = group < groups && slice < slices_of(p.inputs) && (group == 0u || group * rows < own.count * p.halves);
  walk.row = group * rows;
  walk.slice = slice;
  walk.column = min(slice * SUBGROUP + lane, columns_of(p) - 1u);
  walk.takes = walk.busy && slice * SUBGROUP + lane < columns_of(p);
  return walk;
}

// A lane's codes of four rows, and the scale of its block of row lane % 4: four lanes have a block.
struct Four {
  codes: array<vec2<u32>, 4>,
  scale: f32,
}

var<private> next_layer: u32;  // 1 while codes of the next layer are asked for

fn codes_at(weight: u32, at: u32) -> vec2<u32> {
  switch (weight) {
    case 0u: { return qkv_codes[(layer + next_layer) * params.codes_stride + at]; }
    case 1u: { return o_codes[layer * params.codes_stride + at]; }
    case 2u: { return gate_up_codes[layer * params.codes_stride + at]; }
    default: { return down_codes[layer * params.codes_stride + at]; }
  }
}
fn absmax_at(weight: u32, block: u32) -> f32 {
  switch (weight) {
    case 0u: { return qkv_absmax[(layer + next_layer) * params.scales_stride + block]; }
    case 1u: { return o_absmax[layer * params.scales_stride + block]; }
    case 2u: { return gate_up_absmax[layer * params.scales_stride + block]; }
    default: { return down_absmax[layer * params.scales_stride + block]; }
  }
}

// Where a step of four rows begins, in units of the weight. At the weight's end it begins earlier, so that there are four.
fn first_unit(p: Product, own: Own, walk: Walk, step: u32) -> u32 {
  return min(own.first + (walk.row + 4u * step) / p.halves, p.units - 4u / p.halves);
}
// From a step's first row to its row `i`, in rows of the weight.
fn rows_to(p: Product, i: u32) -> u32 {
  return select(i, i / 2u + i % 2u * p.units, p.halves == 2u);
}
fn columns_of(p: Product) -> u32 {
  return p.inputs / ELEMENTS;
}
// Of the lane's codes in the first row of a step.
fn place_of(p: Product, own: Own, walk: Walk, step: u32) -> u32 {
  return first_unit(p, own, walk, step) * columns_of(p) + walk.column;
}
fn codes_of(p: Product, place: u32, i: u32) -> vec2<u32> {
  return codes_at(p.weight, place + rows_to(p, i) * columns_of(p));
}
fn scale_of(p: Product, place: u32, lane: u32) -> f32 {
  return absmax_at(p.weight, (place + rows_to(p, lane % 4u) * columns_of(p)) / BLOCK_LANES);
}
fn four_of(p: Product, own: Own, walk: Walk, step: u32, lane: u32) -> Four {
  let place = place_of(p, own, walk, step);
  return Four(array<vec2<u32>, 4>(codes_of(p, place, 0u), codes_of(p, place, 1u), codes_of(p, place, 2u), codes_of(p, place, 3u)),
              scale_of(p, place, lane));
}

// The first eight rows', to be asked for before x is there.
struct Ahead {
  one: Four,
  two: Four,
}
fn look_ahead(p: Product, own: Own, walk: Walk, lane: u32) -> Ahead {
  var ahead: Ahead;
  if (walk.busy) {
    ahead.one = four_of(p, own, walk, 0u, lane);
    ahead.two = four_of(p, own, walk, 1u, lane);
  }
  return ahead;
}

// Leaves in lane i of a subgroup the sum of value i % 4 over all blocks, each times its scale.
fn sum_of_lanes(v: vec4<f32>, scale: f32, lane: u32) -> f32 {
  var sum = sum_of_four(v, lane) * scale;
  for (var i = 4u; i < SUBGROUP; i *= 2u) {
    sum += subgroupShuffleXor(sum, i);
  }
  return sum;
}

// Meets a step's four rows. Each is followed by the one eight rows behind it as soon as its codes are used up.
fn put_shares(p: Product, own: Own, walk: Walk, step: u32, more: bool, four: ptr<function, Four>, x: Lane, lane: u32) {
  let next = place_of(p, own, walk, step + 2u);
  var next_scale: f32;
  if (more) {
    next_scale = scale_of(p, next, lane);
  }
  var products: vec4<f32>;
  for (var i = 0u; i < 4u; i++) {
    products[i] = product_of((*four).codes[i], x, lane);
    if (more) {
      (*four).codes[i] = codes_of(p, next, i);
    }
  }
  let sum = sum_of_lanes(products, (*four).scale * x.scale, lane);
  (*four).scale = next_scale;
  let row = (first_unit(p, own, walk, step) - own.first) * p.halves + lane;
  if (walk.busy && lane < 4u && row < own.count * p.halves) {
    scratch[SHARES_AT + row * slices_of(p.inputs) + walk.slice] = sum;
  }
}

// One sweep. Subgroups that have no inputs go along, since shuffles ask for uniform control flow.
fn multiply(p: Product, own: Own, walk: Walk, x: Lane, ahead: Ahead, lane: u32) {
  var one = ahead.one;
  var two = ahead.two;
  let steps = (rows_of_group(p, own) + 3u) / 4u;
  for (var step = 0u; step < steps; step += 2u) {
    put_shares(p, own, walk, step, walk.busy && step + 2u < steps, &one, x, lane);
    if (step + 1u < steps) {
      put_shares(p, own, walk, step + 1u, walk.busy && step + 3u < steps, &two, x, lane);
    }
  }
}

fn total(row: u32, slices: u32) -> f32 {
  var sum = 0.0;
  for (var s = 0u; s < slices; s++) {
    sum += scratch[SHARES_AT + row * slices + s];
  }
  return sum;
}
