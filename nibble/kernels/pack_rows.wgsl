// y[r] = f16(x[r] * up), scale[r] = 1 / up, with the power of two `up` of the row (lib/row_scale.wgsl). One workgroup a row.

struct Params {
  rows: u32,
  columns: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Wide>;
@group(0) @binding(2) var<storage, read_write> y: array<Data>;
@group(0) @binding(3) var<storage, read_write> y_scale: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let wides = params.columns / WIDTH;
  let first = row * wides;
  var largest = 0u;
  for (var i = lane; i < wides; i += WORKGROUP) {
    largest = max(largest, wide_max_bits(wide_bits(x[first + i]) & WideIndex(MAGNITUDE)));
  }
  let scale = row_scale(row_max(lane, largest));
  if (lane == 0u) {
    y_scale[row] = scale.down;
  }
  for (var i = lane; i < wides; i += WORKGROUP) {
    y[first + i] = Data(x[first + i] * scale.up);
  }
}
