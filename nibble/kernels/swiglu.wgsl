// SwiGLU of rows, one workgroup a row.
// Forward:  h = silu(gate) * up, silu(g) = g * s(g), s(g) = 1 / (1 + exp(-g)).
// Backward: d_gate = dh * up * s * (1 + gate * (1 - s)), d_up = dh * gate * s.
// The entries ending in _scaled store f16 times a power of two a row, for which they compute everything twice.

struct Params {
  rows: u32,
  columns: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gate: array<Wide>;
@group(0) @binding(2) var<storage, read> up: array<Wide>;

fn product(i: u32) -> Wide {
  let g = gate[i];
  return g * sigmoid(g) * up[i];
}

@group(0) @binding(3) var<storage, read_write> h: array<Data>;
@group(0) @binding(4) var<storage, read_write> h_scale: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let wides = params.columns / WIDTH;
  for (var i = lane; i < wides; i += WORKGROUP) {
    h[row * wides + i] = Data(product(row * wides + i));
  }
}

@compute @workgroup_size(WORKGROUP)
fn forward_scaled(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                  @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let wides = params.columns / WIDTH;
  let first = row * wides;
  var largest = 0u;
  for (var i = lane; i < wides; i += WORKGROUP) {
    largest = max(largest, wide_max_bits(wide_bits(product(first + i)) & WideIndex(MAGNITUDE)));
  }
  let scale = row_scale(row_max(lane, largest));
  if (lane == 0u) {
    h_scale[row] = scale.down;
  }
  for (var i = lane; i < wides; i += WORKGROUP) {
    h[first + i] = Data(product(first + i) * scale.up);
  }
}

struct Slopes {
  gate: Wide,
  up: Wide,
}

@group(0) @binding(3) var<storage, read> dh: array<Wide>;
@group(0) @binding(4) var<storage, read_write> d_gate: array<Data>;
@group(0) @binding(5) var<storage, read_write> d_up: array<Data>;
@group(0) @binding(6) var<storage, read_write> d_gate_scale: array<f32>;
@group(0) @binding(7) var<storage, read_write> d_up_scale: array<f32>;

fn slopes(i: u32) -> Slopes {
  let g = gate[i];
  let s = sigmoid(g);
  let d = dh[i];
  return Slopes(d * up[i] * (s * (Wide(1.0) + g * (Wide(1.0) - s))), d * (g * s));
}

@compute @workgroup_size(WORKGROUP)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let wides = params.columns / WIDTH;
  for (var i = row * wides + lane; i < (row + 1u) * wides; i += WORKGROUP) {
    let slope = slopes(i);
    d_gate[i] = Data(slope.gate);
    d_up[i] = Data(slope.up);
  }
}

@compute @workgroup_size(WORKGROUP)
fn backward_scaled(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                   @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let wides = params.columns / WIDTH;
  var largest_gate = 0u;
  var largest_up = 0u;
  for (var i = row * wides + lane; i < (row + 1u) * wides; i += WORKGROUP) {
    let slope = slopes(i);
    largest_gate = max(largest_gate, wide_max_bits(wide_bits(slope.gate) & WideIndex(MAGNITUDE)));
    largest_up = max(largest_up, wide_max_bits(wide_bits(slope.up) & WideIndex(MAGNITUDE)));
  }
  let gate_scale = row_scale(row_max(lane, largest_gate));
  let up_scale = row_scale(row_max(lane, largest_up));
  if (lane == 0u) {
    d_gate_scale[row] = gate_scale.down;
    d_up_scale[row] = up_scale.down;
  }
  for (var i = row * wides + lane; i < (row + 1u) * wides; i += WORKGROUP) {
    let slope = slopes(i);
    d_gate[i] = Data(slope.gate * gate_scale.up);
    d_up[i] = Data(slope.up * up_scale.up);
  }
}
