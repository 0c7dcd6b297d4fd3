// d_magnitude[n] += sum over t of dy[t, n] * (y[t, n] - bias[n]) / magnitude[n]. A workgroup takes COLUMNS columns; ROWS lanes share
// the rows of each, and their sums are added up in their order. DY_SCALED and Y_SCALED: f16 with a factor a row, else f32,
// and what stands in place of the factors is not read. HAS_BIAS likewise.
struct Params {
  rows: u32,
  columns: u32,      // of the projection
  dy_stride: u32,
  y_stride: u32,
  first: u32,        // of the projection's columns in dy and y
  bias_first: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> dy: array<DyData>;
@group(0) @binding(2) var<storage, read> dy_scale: array<f32>;
@group(0) @binding(3) var<storage, read> y: array<YData>;
@group(0) @binding(4) var<storage, read> y_scale: array<f32>;
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read> magnitude: array<f32>;
@group(0) @binding(7) var<storage, read_write> d_magnitude: array<f32>;

var<workgroup> sums: array<f32, ROWS * COLUMNS>;

@compute @workgroup_size(ROWS * COLUMNS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let column = linear_workgroup(group, groups) * COLUMNS + lane % COLUMNS;
  var sum = 0.0;
  if (column < params.columns) {
    var shift = 0.0;
    if (HAS_BIAS) {
      shift = bias[params.bias_first + column];
    }
    for (var row = lane / COLUMNS; row < params.rows; row += ROWS) {
      var left = f32(dy[row * params.dy_stride + params.first + column]);
      if (DY_SCALED) {
        left *= dy_scale[row];
      }
      var right = f32(y[row * params.y_stride + params.first + column]);
      if (Y_SCALED) {
        right *= y_scale[row];
      }
      sum += left * (right - shift);
    }
  }
  sums[lane] = sum;
  workgroupBarrier();
  if (lane < COLUMNS && column < params.columns) {
    for (var i = 1u; i < ROWS; i++) {
      sum += sums[i * COLUMNS + lane];
    }
    if (magnitude[column] != 0.0) {
      d_magnitude[column] += sum / magnitude[column];
    }
  }
}
