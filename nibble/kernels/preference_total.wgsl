// total[k] = or += the sum over rows of statistics[row, k], row after row. One workgroup, a lane a column.

struct Params {
  rows: u32,
  accumulate: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> statistics: array<f32>;
@group(0) @binding(2) var<storage, read_write> total: array<f32>;

@compute @workgroup_size(COLUMNS)
fn main(@builtin(local_invocation_index) column: u32) {
  var sum = 0.0;
  if (params.accumulate != 0u) {
    sum = total[column];
  }
  for (var row = 0u; row < params.rows; row++) {
    sum += statistics[row * COLUMNS + column];
  }
  total[column] = sum;
}
