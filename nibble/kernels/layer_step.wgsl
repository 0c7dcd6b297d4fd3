// Whole layers for one new token in one dispatch, for GPUs, where the start and the end of a dispatch cost more than most of a
// layer's products. All workgroups must run at one time (layer_step.h), for they hand their results to each other through
// `exchange` (lib/step_exchange.wgsl): projection of queries, keys and values; attention by parts; its parts together; o; gate and
// up; down. Before a result is waited for, the first codes that it will meet are asked for, if EARLY as soon as a subgroup is through with
// the product before.
//
// Prelude: EARLY; SUBGROUP, at least 8; WORKGROUP, a multiple of it; HIDDEN, ATTENDED, QKV, INTERMEDIATE, multiples of 64; HEADS, KEY_HEADS,
// HEAD_DIM; HEAD_NORM, BIAS, RANK; SCRATCH, room of workgroup memory; WORKGROUPS, those of the dispatch; of the exchange REGION,
// the words of a layer's, and the places in it: INPUT_AT, QKV_AT, PARTS_AT, NUMBERS_AT, ATTENDED_AT, MIDDLE_AT, GATED_AT, LORA_AT;
// CONSTANTS, those of a layer, and the places among them: ATTENTION_NORM_AT, MLP_NORM_AT, Q_NORM_AT, K_NORM_AT, BIAS_AT; LOADS_MOVE:
// lib/step_exchange.wgsl.

struct Params {
  layers: u32,
  region: u32,        // of the exchange, the first layer's
  constants: u32,     // where the first layer's begin
  patience: u32,      // looks at a word that is not there yet
  eps: f32,
  capacity: u32,      // of the caches, rows of a head
  first_key: u32,     // the first row that is met
  new_key: u32,       // the new token's, and the last
  parts: u32,         // of the keys
  part_keys: u32,
  position: u32,      // of the new token
  adapted: u32,       // a bit for each projection that has an adapter
  // From a layer's to the next one's, in elements of the bindings.
  codes_stride: u32,
  scales_stride: u32,
  keys_stride: u32,
  a_stride: u32,
  b_stride: u32,
  a_begin: array<vec4<u32>, 2>,  // by projection, in `lora`, the first layer's
  b_begin: array<vec4<u32>, 2>,
  scaling: array<vec4<f32>, 2>,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(14) var<storage, read> input: array<f32>;
@group(0) @binding(15) var<storage, read_write> output: array<f32>;

const HIDDEN_PLACES = max(3u * RANK, WORKGROUPS);  // of a product, at most
const HIDDEN_SLICES = (HIDDEN + SPAN - 1u) / SPAN;

var<workgroup> scratch: array<f32, SCRATCH>;  // of a product: each row's shares, a slice each; of attention: lib/step_attention.wgsl
var<workgroup> square_shares: array<f32, SQUARES>;

// Of this layer's constant `at`.
fn place_of_constant(at: u32) -> u32 {
  return params.constants + layer * CONSTANTS + at;
}

// Who asks, within a workgroup.
struct Invocation {
  index: u32,
  subgroup: u32,
  lane: u32,
}

fn norm_factor() -> f32 {
  var sum = 0.0;
  for (var s = 0u; s < SQUARES; s++) {
    sum += square_shares[s];
  }
  return 1.0 / sqrt(sum / f32(HIDDEN) + params.eps);
}

// The codes that a product meets first: whether they are on their way already, and whether those of the product behind it are to be asked
// for at its end.
struct FirstCodes {
  known: bool,
  asks: bool,
  next: Product,
}
var<private> first_codes: Ahead;

fn ask_for_next(next: Product, who: Invocation, workgroup: u32) {
  let own = own_units(next.units, workgroup);
  next_layer = select(0u, 1u, next.weight == QKV_PRODUCT.weight);
  first_codes = look_ahead(next, own, walk_of(next, own, 0u, who.subgroup, who.lane), who.lane);
  next_layer = 0u;
}

// A product up to its shares, and those of its adapters. Returns the factor of both, the norm's where there is one.
fn run_product(p: Product, source: u32, first_projection: u32, members: u32, codes: FirstCodes, who: Invocation, workgroup: u32) -> f32 {
  let own = own_units(p.units, workgroup);
  var b_ahead: OfB;
  for (var sweep = 0u; sweep < sweeps_of(p.inputs); sweep++) {
    let walk = walk_of(p, own, sweep, who.subgroup, who.lane);
    var ahead: Ahead;
    if (EARLY && codes.known && sweep == 0u) {
      ahead = first_codes;
    } else {
      ahead = look_ahead(p, own, walk, who.lane);
    }
    let weights = look_ahead_at_weights(p, walk);
    let first = first_of(p, sweep);
    let a_ahead = look_ahead_at_a(first_projection, members, p.inputs, first, count_of(p, sweep), who.index, workgroup);
    // What this workgroup has put is taken by others of its subgroups, which only barriers promise to run.
    workgroupBarrier();
    let x = inputs_of(p, source, walk, sweep, weights, who);
    if (RANK > 0u) {
      add_hidden(first_projection, members, p.inputs, first, count_of(p, sweep), a_ahead, who.index, who.subgroup, who.lane, workgroup);
      if (sweep + 1u == sweeps_of(p.inputs)) {
        workgroupBarrier();
        put_hidden(LORA_AT + p.weight * HIDDEN_PLACES, first_projection, members, who.index, workgroup);
      }
    }
    b_ahead = look_ahead_at_b(p, own, who.subgroup, who.lane);
    multiply(p, own, walk, lane_of(x), ahead, who.lane);
  }
  if (EARLY && codes.asks) {
    ask_for_next(codes.next, who, workgroup);
  }
  take_hidden(LORA_AT + p.weight * HIDDEN_PLACES, first_projection, members, who.subgroup, who.lane);
  workgroupBarrier();
  meet_b(p, own, b_ahead, who.subgroup, who.lane);
  if (is_normed(p)) {
    return norm_factor();
  }
  return 1.0;
}

// Rounds of a workgroup's invocations over its units.
fn rounds_of(units: u32) -> u32 {
  return ((units + WORKGROUPS - 1u) / WORKGROUPS + WORKGROUP - 1u) / WORKGROUP;
}

fn project(who: Invocation, workgroup: u32) {
  let own = own_units(QKV, workgroup);
  let factor = run_product(QKV_PRODUCT, INPUT_AT, 0u, 3u, FirstCodes(layer > 0u, false, O_PRODUCT), who, workgroup);
  for (var round = 0u; round < rounds_of(QKV); round++) {
    let n = who.index + round * WORKGROUP;
    if (n >= own.count) {
      break;
    }
    let row = own.first + n;
    var result = factor * (total(n, slices_of(HIDDEN)) + share_of_adapter(QKV_PRODUCT, own, n));
    if (BIAS) {
      result += constant_at(BIAS_AT + row);
    }
    put(QKV_AT + row, result);
  }
}

fn attend_all(who: Invocation, workgroup: u32) {
  for (var item = workgroup; item < KEY_HEADS * params.parts; item += WORKGROUPS) {
    workgroupBarrier();
    attend(item, who.index, who.subgroup, who.lane);
  }
  put_attended(own_units(ATTENDED, workgroup), who.index);
}

// A product whose results are added to the residual stream, whose values lie from `stream` on; this invocation's first one is `known`. The
// sums go from `to` on, or at the end of the dispatch into the output. Returns the first.
fn project_back(p: Product, source: u32, projection: u32, known: f32, stream: u32, to: u32, ends: bool, codes: FirstCodes, who: Invocation, workgroup: u32) -> f32 {
  let own = own_units(HIDDEN, workgroup);
  var before = known;
  var first: f32;
  run_product(p, source, projection, 1u, codes, who, workgroup);
  for (var round = 0u; round < rounds_of(HIDDEN); round++) {
    let n = who.index + round * WORKGROUP;
    if (n >= own.count) {
      break;
    }
    let row = own.first + n;
    if (round > 0u) {
      before = take(stream + place(row));
    }
    let result = before + total(n, slices_of(p.inputs)) + share_of_adapter(p, own, n);
    if (round == 0u) {
      first = result;
    }
    if (ends) {
      output[row] = result;
    } else {
      put(to + place(row), result);
    }
  }
  return first;
}

fn gate(who: Invocation, workgroup: u32) {
  let own = own_units(INTERMEDIATE, workgroup);
  let factor = run_product(GATE_UP_PRODUCT, MIDDLE_AT, 4u, 2u, FirstCodes(true, true, DOWN_PRODUCT), who, workgroup);
  for (var round = 0u; round < rounds_of(INTERMEDIATE); round++) {
    let n = who.index + round * WORKGROUP;
    if (n >= own.count) {
      break;
    }
    let row = own.first + n;
    let g = factor * (total(2u * n, slices_of(HIDDEN)) + share_of_adapter(GATE_UP_PRODUCT, own, 2u * n));
    let u = factor * (total(2u * n + 1u, slices_of(HIDDEN)) + share_of_adapter(GATE_UP_PRODUCT, own, 2u * n + 1u));
    put(GATED_AT + place(row), silu(g) * u);
  }
}

// Hands the first layer's input on as later ones get theirs. Returns the first value of this invocation.
fn begin(who: Invocation, workgroup: u32) -> f32 {
  let own = own_units(HIDDEN, workgroup);
  var first: f32;
  for (var round = 0u; round < rounds_of(HIDDEN); round++) {
    let n = who.index + round * WORKGROUP;
    if (n >= own.count) {
      break;
    }
    let value = input[own.first + n];
    put(INPUT_AT + place(own.first + n), value);
    if (round == 0u) {
      first = value;
    }
  }
  return first;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32,
        @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32) {
  let who = Invocation(index, subgroup, lane);
  patience = select(params.patience, 0u, in_trouble());
  prepare_products(index, lane);
  var first = begin(who, group.x);
  for (var i = 0u; i < params.layers; i++) {
    layer = i;
    project(who, group.x);
    attend_all(who, group.x);
    let middle = project_back(O_PRODUCT, ATTENDED_AT, 3u, first, INPUT_AT, MIDDLE_AT, false, FirstCodes(false, true, GATE_UP_PRODUCT), who, group.x);
    gate(who, group.x);
    // The next layer's input.
    let ends = layer + 1u == params.layers;
    first = project_back(DOWN_PRODUCT, GATED_AT, 6u, middle, MIDDLE_AT, REGION + INPUT_AT, ends, FirstCodes(true, !ends, QKV_PRODUCT), who, group.x);
  }
}
