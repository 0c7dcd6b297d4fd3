// A product's inputs straight into registers: each lane takes its own from the exchange, so that a subgroup goes on as soon as its slice is
// there, and workgroup memory is free for a table of codes. Groups of subgroups with other rows take the same slices again.
@group(0) @binding(13) var<storage, read> constants: array<vec4<f32>>;  // of all layers: norms of a layer and of heads, bias

const SHARES_AT = 0u;              // of the rows' shares, in `scratch`
const SQUARES = HIDDEN_SLICES;     // a share of the squares for each slice

// In the exchange inputs lie so that a subgroup's lanes, each of which takes ELEMENTS neighbours, read neighbouring words at a time.
fn place(k: u32) -> u32 {
  return k / SPAN * SPAN + k % ELEMENTS * SUBGROUP + k % SPAN / ELEMENTS;
}

fn constant_at(at: u32) -> f32 {
  return constants[place_of_constant(at) / 4u][at % 4u];
}

// The lane's weights of the norm, to be asked for before x is there.
alias Weights = Inputs;
fn look_ahead_at_weights(p: Product, walk: Walk) -> Weights {
  var weights: Weights;
  if (is_normed(p) && walk.busy) {
    let first = place_of_constant(norm_of(p) + walk.column * ELEMENTS) / 4u;
    weights = Inputs(constants[first], constants[first + 1u], constants[first + 2u], constants[first + 3u]);
  }
  return weights;
}

// Of what begins at `source`, those of column `column` of all, in ELEMENTS.
fn take_inputs(source: u32, column: u32) -> Inputs {
  let first = source + place(column * ELEMENTS) + vec4<u32>(0u, 1u, 2u, 3u) * SUBGROUP;
  let step = vec4<u32>(4u * SUBGROUP);
  var a = look_at_four(first);
  var b = look_at_four(first + step);
  var c = look_at_four(first + 2u * step);
  var d = look_at_four(first + 3u * step);
  for (var looks = 0u; (is_missing(a) || is_missing(b) || is_missing(c) || is_missing(d)) && goes_on(looks); looks++) {
    a = look_again(a, first);
    b = look_again(b, first + step);
    c = look_again(c, first + 2u * step);
    d = look_again(d, first + 3u * step);
  }
  return Inputs(values_of(a), values_of(b), values_of(c), values_of(d));
}

// A sweep's inputs of a lane, by the norm's weights. Behind the next barrier the shares of the squares are there.
fn inputs_of(p: Product, source: u32, walk: Walk, sweep: u32, weights: Weights, who: Invocation) -> Inputs {
  var x: Inputs;
  if (walk.takes) {
    x = take_inputs(source, walk.column);
  }
  if (is_normed(p)) {
    let sum = subgroupAdd(dot(x[0], x[0]) + dot(x[1], x[1]) + dot(x[2], x[2]) + dot(x[3], x[3]));
    if (walk.busy && walk.row == 0u && who.lane == 0u) {
      square_shares[walk.slice] = sum;
    }
    x = Inputs(x[0] * weights[0], x[1] * weights[1], x[2] * weights[2], x[3] * weights[3]);
  }
  return x;
}
