// y += bias, a workgroup a row. `scaled` has f16 rows with a power of two each: what they stand for is added to, and stored with
// the power that suits the sum. Each lane reads and writes its own elements.

struct Params {
  rows: u32,
  columns: u32,
  first: u32,  // of bias
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> y: array<Data>;
@group(0) @binding(2) var<storage, read> bias: array<Wide>;

@compute @workgroup_size(WORKGROUP)
fn plain(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
         @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let wides = params.columns / WIDTH;
  for (var i = lane; i < wides; i += WORKGROUP) {
    y[row * wides + i] += Data(bias[params.first / WIDTH + i]);
  }
}

@group(0) @binding(3) var<storage, read_write> scale: array<f32>;

fn sum_at(row: u32, i: u32, unit: f32) -> Wide {
  return Wide(y[row * (params.columns / WIDTH) + i]) * unit + bias[params.first / WIDTH + i];
}

@compute @workgroup_size(WORKGROUP)
fn scaled(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let wides = params.columns / WIDTH;
  let unit = scale[row];
  var largest = 0u;
  for (var i = lane; i < wides; i += WORKGROUP) {
    largest = max(largest, wide_max_bits(wide_bits(sum_at(row, i, unit)) & WideIndex(MAGNITUDE)));
  }
  // Behind its barriers every lane has read the old scale.
  let to = row_scale(row_max(lane, largest));
  for (var i = lane; i < wides; i += WORKGROUP) {
    y[row * wides + i] = Data(sum_at(row, i, unit) * to.up);
  }
  if (lane == 0u) {
    scale[row] = to.down;
  }
}
