// A workgroup's rows of a product of one token with a weight in NF4. A subgroup has a slice of SPAN inputs, ELEMENTS a lane in
// registers, and meets the same columns of all rows of its group of subgroups, four at a time, while the next eight rows' codes are
// on their way. Where there are more slices than subgroups the inputs are swept over in turns.
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

var<workgroup> shares: array<f32, SHARES>;  // of each row, of its slices

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

// The units of a workgroup, [first, first + count).
struct Own {
  first: u32,
  count: u32,
}
fn own_units(units: u32, workgroup: u32) -> Own {
  let first = workgroup * units / WORKGROUPS;
  return Own(first, (workgroup + 1u) * units / WORKGROUPS - first);
}

// Where a subgroup is in a product: its rows among the workgroup's, and the lane's column of the weight, in ELEMENTS.
struct Walk {
  busy: bool,
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
  walk.busy = group < groups && group * rows < own.count * p.halves && slice < slices_of(p.inputs);
  walk.row = group * rows;
  walk.slice = slice;
  walk.column = slice * SUBGROUP + lane;
  return walk;
}

// A lane's codes of four rows, and the scale of its block of row lane % 4: four lanes have a block.
struct Four {
  first: vec4<u32>,  // eight elements of each
  second: vec4<u32>,
  scale: f32,
}
fn of_lane(v: vec4<u32>, lane: u32) -> u32 {
  let odd = (lane & 1u) != 0u;
  return select(select(v.x, v.y, odd), select(v.z, v.w, odd), (lane & 2u) != 0u);
}

fn codes_at(weight: u32, at: u32) -> vec2<u32> {
  switch (weight) {
    case 0u: { return qkv_codes[at]; }
    case 1u: { return o_codes[at]; }
    case 2u: { return gate_up_codes[at]; }
    default: { return down_codes[at]; }
  }
}
fn absmax_at(weight: u32, block: u32) -> f32 {
  switch (weight) {
    case 0u: { return qkv_absmax[block]; }
    case 1u: { return o_absmax[block]; }
    case 2u: { return gate_up_absmax[block]; }
    default: { return down_absmax[block]; }
  }
}

fn four_of(p: Product, own: Own, walk: Walk, step: u32, lane: u32) -> Four {
  let columns = p.inputs / ELEMENTS;
  let column = min(walk.column, columns - 1u);
  let row = walk.row + 4u * step;
  var at: vec4<u32>;
  if (p.halves == 2u) {
    let unit = own.first + min(vec2<u32>(row / 2u, row / 2u + 1u), vec2<u32>(own.count - 1u));
    at = vec4<u32>(unit.x, unit.x + p.units, unit.y, unit.y + p.units) * columns + column;
  } else {
    at = (own.first + min(row + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(own.count - 1u))) * columns + column;
  }
  let a = codes_at(p.weight, at.x);
  let b = codes_at(p.weight, at.y);
  let c = codes_at(p.weight, at.z);
  let d = codes_at(p.weight, at.w);
  return Four(vec4<u32>(a.x, b.x, c.x, d.x), vec4<u32>(a.y, b.y, c.y, d.y),
              absmax_at(p.weight, of_lane(at, lane) / BLOCK_LANES));
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

fn add_four(sums: vec4<f32>, at: vec4<u32>, value: f32) -> vec4<f32> {
  return fma(vec4<f32>(code(at.x), code(at.y), code(at.z), code(at.w)), vec4<f32>(value), sums);
}
// Byte `at` of four words: a dot product with a one there, which units take that shifts and masks do not.
fn byte_of(words: vec4<u32>, at: u32) -> vec4<u32> {
  let one = 1u << (8u * at);
  return vec4<u32>(dot4U8Packed(words.x, one), dot4U8Packed(words.y, one), dot4U8Packed(words.z, one), dot4U8Packed(words.w, one));
}
// Of four rows' words, whose bytes hold two elements each, the first in the upper half.
fn add_words(sums: vec4<f32>, words: vec4<u32>, low: vec4<f32>, high: vec4<f32>) -> vec4<f32> {
  let even = (words >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
  let odd = words & vec4<u32>(0x0f0f0f0fu);
  var result = add_four(sums, byte_of(even, 0u), low.x);
  result = add_four(result, byte_of(odd, 0u), low.y);
  result = add_four(result, byte_of(even, 1u), low.z);
  result = add_four(result, byte_of(odd, 1u), low.w);
  result = add_four(result, byte_of(even, 2u), high.x);
  result = add_four(result, byte_of(odd, 2u), high.y);
  result = add_four(result, byte_of(even, 3u), high.z);
  return add_four(result, byte_of(odd, 3u), high.w);
}

alias Lane = array<vec4<f32>, 4>;  // a lane's elements of x

// Leaves in lane i of a subgroup the sum of value i % 4 over all blocks, each times its scale.
fn sum_of_lanes(v: vec4<f32>, scale: f32, lane: u32) -> f32 {
  var sum = sum_of_four(v, lane) * scale;
  for (var i = 4u; i < SUBGROUP; i *= 2u) {
    sum += subgroupShuffleXor(sum, i);
  }
  return sum;
}

fn put_shares(p: Product, own: Own, walk: Walk, step: u32, four: Four, x: Lane, lane: u32) {
  let first = add_words(vec4<f32>(), four.first, x[0], x[1]);
  let sum = sum_of_lanes(add_words(first, four.second, x[2], x[3]), four.scale, lane);
  let row = walk.row + 4u * step + lane;
  if (walk.busy && lane < 4u && row < own.count * p.halves) {
    shares[row * slices_of(p.inputs) + walk.slice] = sum;
  }
}

fn lane_values(p: Product, walk: Walk, sweep: u32) -> Lane {
  var x: Lane;
  if (walk.busy && walk.column < p.inputs / ELEMENTS) {
    let at = (walk.column - sweep * width_of(p.inputs) * SUBGROUP) * GAPS;
    x[0] = vec4<f32>(values[at], values[at + 1u], values[at + 2u], values[at + 3u]);
    x[1] = vec4<f32>(values[at + 4u], values[at + 5u], values[at + 6u], values[at + 7u]);
    x[2] = vec4<f32>(values[at + 8u], values[at + 9u], values[at + 10u], values[at + 11u]);
    x[3] = vec4<f32>(values[at + 12u], values[at + 13u], values[at + 14u], values[at + 15u]);
  }
  return x;
}

// One sweep, of the inputs in `values`. Subgroups that have none go along, since shuffles ask for uniform control flow.
fn multiply(p: Product, own: Own, walk: Walk, sweep: u32, ahead: Ahead, lane: u32) {
  let x = lane_values(p, walk, sweep);
  var one = ahead.one;
  var two = ahead.two;
  let steps = (rows_of_group(p, own) + 3u) / 4u;
  for (var step = 0u; step < steps; step += 2u) {
    put_shares(p, own, walk, step, one, x, lane);
    if (walk.busy && step + 2u < steps) {
      one = four_of(p, own, walk, step + 2u, lane);
    }
    if (step + 1u < steps) {
      put_shares(p, own, walk, step + 1u, two, x, lane);
    }
    if (walk.busy && step + 3u < steps) {
      two = four_of(p, own, walk, step + 3u, lane);
    }
  }
}

fn total(row: u32, slices: u32) -> f32 {
  var sum = 0.0;
  for (var s = 0u; s < slices; s++) {
    sum += shares[row * slices + s];
  }
  return sum;
}
