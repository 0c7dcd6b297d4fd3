// SwiGLU of rows that hold gate, then up, both f16 with one scale a row; a workgroup a row, a lane eight values at a time.
// Forward:  h = silu(gate) * up, silu(g) = g * s(g), s(g) = 1 / (1 + exp(-g)).
// Backward: d_gate = dh * up * s * (1 + gate * (1 - s)), d_up = dh * gate * s; `backward_and_h` stores h too.
// A lane keeps up to KEPT vectors from when it looks for the row's largest until they are stored; with KEPT 0, where rows are
// longer, everything is computed twice, and the second reading comes from the cache.

struct Params {
  rows: u32,
  row_vectors: u32,  // of h, of eight values
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gate_up: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scale: array<f32>;

fn largest_of(values: Eight) -> u32 {
  let magnitudes = max(bitcast<vec4<u32>>(values.low) & vec4<u32>(MAGNITUDE), bitcast<vec4<u32>>(values.high) & vec4<u32>(MAGNITUDE));
  return max(max(magnitudes.x, magnitudes.y), max(magnitudes.z, magnitudes.w));
}

fn times(values: Eight, factor: f32) -> Eight {
  return Eight(values.low * factor, values.high * factor);
}

// H_AT: 3 in the forward kernel, 7 in backward ones.
@group(0) @binding(H_AT) var<storage, read_write> h: array<vec4<u32>>;
@group(0) @binding(H_AT + 1u) var<storage, read_write> h_scale: array<f32>;

// Of the vector `at` of gate, in real units.
fn product(at: u32, unit: f32) -> Eight {
  let gate = times(eight_of(gate_up[at]), unit);
  let up = times(eight_of(gate_up[at + params.row_vectors]), unit);
  return Eight(gate.low * sigmoid(gate.low) * up.low, gate.high * sigmoid(gate.high) * up.high);
}

var<private> kept_h: array<Eight, max(KEPT, 1u)>;

// h of a row, from what the lane keeps.
fn store_h(row: u32, lane: u32) {
  let unit = scale[row];
  let first = 2u * row * params.row_vectors;
  var largest = 0u;
  for (var n = 0u; n < KEPT; n++) {
    largest = max(largest, largest_of(kept_h[n]));
  }
  if (KEPT == 0u) {
    for (var i = lane; i < params.row_vectors; i += WORKGROUP) {
      largest = max(largest, largest_of(product(first + i, unit)));
    }
  }
  let to = row_scale(row_max(lane, largest));
  if (lane == 0u) {
    h_scale[row] = to.down;
  }
  for (var n = 0u; n < KEPT; n++) {
    let i = lane + n * WORKGROUP;
    if (i < params.row_vectors) {
      h[row * params.row_vectors + i] = bits_of(times(kept_h[n], to.up));
    }
  }
  if (KEPT == 0u) {
    for (var i = lane; i < params.row_vectors; i += WORKGROUP) {
      h[row * params.row_vectors + i] = bits_of(times(product(first + i, unit), to.up));
    }
  }
}

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let first = 2u * row * params.row_vectors;
  for (var n = 0u; n < KEPT; n++) {
    kept_h[n] = product(first + min(lane + n * WORKGROUP, params.row_vectors - 1u), scale[row]);
  }
  store_h(row, lane);
}

// All kernels are compiled together, so that what the forward one does without must not lie where it has h.
const D_AT = select(3u, 5u, H_AT == 3u);
@group(0) @binding(D_AT) var<storage, read_write> d_gate_up: array<vec4<u32>>;
@group(0) @binding(D_AT + 1u) var<storage, read_write> d_scale: array<f32>;
@group(0) @binding(D_AT + 2u) var<storage, read> dh: array<vec4<u32>>;
@group(0) @binding(D_AT + 3u) var<storage, read> dh_scale: array<f32>;

struct Slopes {
  gate: Eight,
  up: Eight,
  h: Eight,  // no slope: what the forward pass makes of the same values
}

struct FourSlopes {
  gate: vec4<f32>,
  up: vec4<f32>,
  h: vec4<f32>,
}

fn four_slopes(gate: vec4<f32>, up: vec4<f32>, d: vec4<f32>) -> FourSlopes {
  let s = sigmoid(gate);
  return FourSlopes(d * up * (s * (vec4<f32>(1.0) + gate * (vec4<f32>(1.0) - s))), d * (gate * s), gate * s * up);
}

// Of the vector `i` of a row.
fn slopes(row: u32, i: u32) -> Slopes {
  let first = 2u * row * params.row_vectors + i;
  let unit = scale[row];
  let gate = times(eight_of(gate_up[first]), unit);
  let up = times(eight_of(gate_up[first + params.row_vectors]), unit);
  let d = times(eight_of(dh[row * params.row_vectors + i]), dh_scale[row]);
  let low = four_slopes(gate.low, up.low, d.low);
  let high = four_slopes(gate.high, up.high, d.high);
  return Slopes(Eight(low.gate, high.gate), Eight(low.up, high.up), Eight(low.h, high.h));
}

fn store(row: u32, i: u32, slope: Slopes, up: f32) {
  let first = 2u * row * params.row_vectors + i;
  d_gate_up[first] = bits_of(times(slope.gate, up));
  d_gate_up[first + params.row_vectors] = bits_of(times(slope.up, up));
}

// Of a row, as far as the lane keeps them.
var<private> kept_slopes: array<Slopes, max(KEPT, 1u)>;

fn keep_slopes(row: u32, lane: u32) {
  for (var n = 0u; n < KEPT; n++) {
    kept_slopes[n] = slopes(row, min(lane + n * WORKGROUP, params.row_vectors - 1u));
    kept_h[n] = kept_slopes[n].h;
  }
}

fn store_slopes(row: u32, lane: u32) {
  var largest = 0u;
  for (var n = 0u; n < KEPT; n++) {
    largest = max(largest, max(largest_of(kept_slopes[n].gate), largest_of(kept_slopes[n].up)));
  }
  if (KEPT == 0u) {
    for (var i = lane; i < params.row_vectors; i += WORKGROUP) {
      let slope = slopes(row, i);
      largest = max(largest, max(largest_of(slope.gate), largest_of(slope.up)));
    }
  }
  let to = row_scale(row_max(lane, largest));
  if (lane == 0u) {
    d_scale[row] = to.down;
  }
  for (var n = 0u; n < KEPT; n++) {
    let i = lane + n * WORKGROUP;
    if (i < params.row_vectors) {
      store(row, i, kept_slopes[n], to.up);
    }
  }
  if (KEPT == 0u) {
    for (var i = lane; i < params.row_vectors; i += WORKGROUP) {
      store(row, i, slopes(row, i), to.up);
    }
  }
}

@compute @workgroup_size(WORKGROUP)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  keep_slopes(row, lane);
  store_slopes(row, lane);
}

@compute @workgroup_size(WORKGROUP)
fn backward_and_h(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                  @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  keep_slopes(row, lane);
  store_slopes(row, lane);
  store_h(row, lane);
}
