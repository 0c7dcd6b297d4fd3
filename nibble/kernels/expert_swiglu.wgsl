// SwiGLU of the rows of experts, one workgroup a row, with w the weight of the row's slot and s(g) = 1 / (1 + exp(-g)).
// forward:  z = w g s u.
// backward: d_weight = sum over the row of dz g s u, d_gate = w dz u s (1 + g (1 - s)), d_up = w dz g s.

struct Params {
  rows: u32,
  columns: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gate: array<Wide>;
@group(0) @binding(2) var<storage, read> up: array<Wide>;
@group(0) @binding(3) var<storage, read> slot_of_row: array<u32>;
@group(0) @binding(4) var<storage, read> weight: array<f32>;

@group(0) @binding(5) var<storage, read_write> z: array<Wide>;

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let wides = params.columns / WIDTH;
  let w = weight[slot_of_row[row]];
  for (var i = row * wides + lane; i < (row + 1u) * wides; i += WORKGROUP) {
    let g = gate[i];
    z[i] = w * (g * sigmoid(g) * up[i]);
  }
}

@group(0) @binding(5) var<storage, read> dz: array<Wide>;
@group(0) @binding(6) var<storage, read_write> d_gate: array<Wide>;
@group(0) @binding(7) var<storage, read_write> d_up: array<Wide>;
@group(0) @binding(8) var<storage, read_write> d_weight: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let wides = params.columns / WIDTH;
  let slot = slot_of_row[row];
  let w = weight[slot];
  var sum = 0.0;
  for (var i = row * wides + lane; i < (row + 1u) * wides; i += WORKGROUP) {
    let g = gate[i];
    let s = sigmoid(g);
    let d = dz[i];
    sum += wide_sum(d * (g * s * up[i]));
    d_gate[i] = w * d * up[i] * (s * (Wide(1.0) + g * (Wide(1.0) - s)));
    d_up[i] = w * d * (g * s);
  }
  let total = row_sum(lane, sum);
  if (lane == 0u) {
    d_weight[slot] = total;
  }
}
