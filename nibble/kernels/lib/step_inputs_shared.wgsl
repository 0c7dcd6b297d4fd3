// A product's inputs by way of workgroup memory: all invocations fetch those of a sweep, each once, and adapters meet them there.
// Prelude: SHARES_AT, of the rows' shares in `scratch`, behind the inputs.
@group(0) @binding(13) var<storage, read> constants: array<f32>;  // of all layers: norms of a layer and of heads, bias

const SQUARES = (HIDDEN_SLICES + SUBGROUPS - 1u) / SUBGROUPS * SUBGROUPS;  // a share of the squares for each sweep and subgroup
// A gap after each lane's elements, so that lanes meet different banks.
const GAPS = ELEMENTS + 1u;

// In the exchange.
fn place(k: u32) -> u32 {
  return k;
}
// In `scratch`, of input k of a sweep.
fn room_of(k: u32) -> u32 {
  return k / ELEMENTS * GAPS + k % ELEMENTS;
}

fn constant_at(at: u32) -> f32 {
  return constants[place_of_constant(at)];
}

alias Weights = u32;  // nothing is asked for ahead
fn look_ahead_at_weights(p: Product, walk: Walk) -> Weights {
  return 0u;
}

// Puts `v` where inputs k are, as far as these are below `count`, as k.x is.
fn put_inputs(k: vec4<u32>, count: u32, v: vec4<f32>) {
  scratch[room_of(k.x)] = v.x;
  if (k.y < count) {
    scratch[room_of(k.y)] = v.y;
  }
  if (k.z < count) {
    scratch[room_of(k.z)] = v.z;
  }
  if (k.w < count) {
    scratch[room_of(k.w)] = v.w;
  }
}

// Inputs [first, first + count) by a norm's weights, which are asked for before an input is waited for; returns the share of the squares' sum.
fn fetch(p: Product, source: u32, first: u32, count: u32, who: Invocation) -> f32 {
  let norm = norm_of(p) + first;
  var squares = 0.0;
  for (var begin = who.index; begin < count; begin += 4u * WORKGROUP) {
    let k = begin + vec4<u32>(0u, 1u, 2u, 3u) * WORKGROUP;
    let inside = min(k, vec4<u32>(count - 1u));
    var weights = vec4<f32>(1.0);
    if (is_normed(p)) {
      weights = vec4<f32>(constant_at(norm + inside.x), constant_at(norm + inside.y), constant_at(norm + inside.z), constant_at(norm + inside.w));
    }
    let taken = take_four(source + first + inside);
    put_inputs(k, count, taken * weights);
    let own = select(vec4<f32>(), taken, k < vec4<u32>(count));
    squares += dot(own, own);
  }
  return squares;
}

// A sweep's inputs of a lane, by the norm's weights. A barrier, behind which all inputs and the shares of the squares are there.
fn inputs_of(p: Product, source: u32, walk: Walk, sweep: u32, weights: Weights, who: Invocation) -> Inputs {
  let squares = fetch(p, source, first_of(p, sweep), count_of(p, sweep), who);
  if (is_normed(p)) {
    let sum = subgroupAdd(squares);
    if (who.lane == 0u) {
      square_shares[sweep * SUBGROUPS + who.subgroup] = sum;
    }
  }
  workgroupBarrier();
  var x: Inputs;
  if (walk.takes) {
    let at = room_of(walk.column * ELEMENTS - first_of(p, sweep));
    for (var i = 0u; i < 4u; i++) {
      x[i] = vec4<f32>(scratch[at + 4u * i], scratch[at + 4u * i + 1u], scratch[at + 4u * i + 2u], scratch[at + 4u * i + 3u]);
    }
  }
  return x;
}
