// SwiGLU of rows that hold gate, then up, both f16 with one scale a row, an invocation eight values.
// Forward:  h = silu(gate) * up, silu(g) = g * s(g), s(g) = 1 / (1 + exp(-g)).
// Backward: d_gate = dh * up * s * (1 + gate * (1 - s)), d_up = dh * gate * s.
// In units of the inputs' scales a value of h is below 2^16 * 2^16, and one of the gradients below 1.1 * 2^32: divided by
// HEADROOM they stay in f16's range, whatever the rows hold.

struct Params {
  vectors: u32,      // of h in all
  row_vectors: u32,  // and of one row
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gate_up: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scale: array<f32>;

const HEADROOM = 131072.0;           // 2^17
const GRADIENT_HEADROOM = 262144.0;  // 2^18

struct Place {
  row: u32,
  column: u32,  // a vector of h
  exists: bool,
}

fn place_of(group: vec3<u32>, groups: vec3<u32>, invocation: u32) -> Place {
  let vector = linear_workgroup(group, groups) * 256u + invocation;
  let row = vector / params.row_vectors;
  return Place(row, vector - row * params.row_vectors, vector < params.vectors);
}

// exp(-g) would overflow for g below -88; there s(g) is 0 to within 1e-38.
fn sigmoid(g: vec4<f32>) -> vec4<f32> {
  return vec4<f32>(1.0) / (vec4<f32>(1.0) + exp(-max(g, vec4<f32>(-87.0))));
}

@group(0) @binding(3) var<storage, read_write> h: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> h_scale: array<f32>;

// `gate` and `up` are in units of `unit`; so is one factor of the result, and the other in units of unit * HEADROOM.
fn product(gate: vec4<f32>, up: vec4<f32>, unit: f32) -> vec4<f32> {
  return gate * sigmoid(gate * unit) * (up * (1.0 / HEADROOM));
}

@compute @workgroup_size(256)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) invocation: u32) {
  let at = place_of(group, groups, invocation);
  if (!at.exists) {
    return;
  }
  let unit = scale[at.row];
  let first = 2u * at.row * params.row_vectors + at.column;
  let gate = eight_of(gate_up[first]);
  let up = eight_of(gate_up[first + params.row_vectors]);
  h[at.row * params.row_vectors + at.column] =
      bits_of(Eight(product(gate.low, up.low, unit), product(gate.high, up.high, unit)));
  if (at.column == 0u) {
    h_scale[at.row] = unit * unit * HEADROOM;
  }
}

@group(0) @binding(3) var<storage, read_write> d_gate_up: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> d_scale: array<f32>;
@group(0) @binding(5) var<storage, read> dh: array<vec4<u32>>;
@group(0) @binding(6) var<storage, read> dh_scale: array<f32>;

struct Slopes {
  gate: vec4<f32>,
  up: vec4<f32>,
}

fn slopes(gate: vec4<f32>, up: vec4<f32>, d: vec4<f32>, unit: f32) -> Slopes {
  let s = sigmoid(gate * unit);
  let along = d * (1.0 / GRADIENT_HEADROOM) * s;
  return Slopes(along * up * (vec4<f32>(1.0) + gate * unit * (vec4<f32>(1.0) - s)), along * gate);
}

@compute @workgroup_size(256)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) invocation: u32) {
  let at = place_of(group, groups, invocation);
  if (!at.exists) {
    return;
  }
  let unit = scale[at.row];
  let first = 2u * at.row * params.row_vectors + at.column;
  let gate = eight_of(gate_up[first]);
  let up = eight_of(gate_up[first + params.row_vectors]);
  let d = eight_of(dh[at.row * params.row_vectors + at.column]);
  let low = slopes(gate.low, up.low, d.low, unit);
  let high = slopes(gate.high, up.high, d.high, unit);
  d_gate_up[first] = bits_of(Eight(low.gate, high.gate));
  d_gate_up[first + params.row_vectors] = bits_of(Eight(low.up, high.up));
  if (at.column == 0u) {
    d_scale[at.row] = unit * dh_scale[at.row] * GRADIENT_HEADROOM;
  }
}
