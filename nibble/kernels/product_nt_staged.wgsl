// product_nt.wgsl for GPUs and wide results, without dropout: the same sums, with x and w staged in workgroup memory as f32.
// A workgroup computes 64 x 64 of y, an invocation 4 rows by 4 columns, both 16 apart; K is a multiple of 4.
@group(0) @binding(1) var<storage, read> x: array<StoredX>;
@group(0) @binding(2) var<storage, read> w: array<StoredW>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

const LENGTH = 4u;  // vectors of one step along k
const PITCH = LENGTH + 1u;  // spreads rows over the banks of workgroup memory
var<workgroup> x_tile: array<vec4<f32>, 64u * PITCH>;
var<workgroup> w_tile: array<vec4<f32>, 64u * PITCH>;

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>,
        @builtin(local_invocation_index) index: u32) {
  let row = group.y * 64u;
  let column = group.x * 64u;
  let length = params.inputs / 4u;
  let put = index / LENGTH;
  let at_x = min(row + put, params.rows - 1u) * length;
  let at_w = min(column + put, params.outputs - 1u) * length;
  var sum: array<array<f32, 4>, 4>;
  for (var begin = 0u; begin < length; begin += LENGTH) {
    let k = begin + index % LENGTH;
    let inside = k < length;
    let source = min(k, length - 1u);
    x_tile[put * PITCH + index % LENGTH] = select(vec4<f32>(), vec4<f32>(x[at_x + source]), inside);
    w_tile[put * PITCH + index % LENGTH] = select(vec4<f32>(), vec4<f32>(w[at_w + source]), inside);
    workgroupBarrier();
    for (var l = 0u; l < LENGTH; l++) {
      var b: array<vec4<f32>, 4>;
      for (var j = 0u; j < 4u; j++) {
        b[j] = w_tile[(lane.x + 16u * j) * PITCH + l];
      }
      for (var i = 0u; i < 4u; i++) {
        let a = x_tile[(lane.y + 16u * i) * PITCH + l];
        for (var j = 0u; j < 4u; j++) {
          sum[i][j] = dot_add(a, b[j], sum[i][j]);
        }
      }
    }
    workgroupBarrier();
  }
  for (var i = 0u; i < 4u; i++) {
    let m = row + lane.y + 16u * i;
    let factor = params.scale * row_scale(min(m, params.rows - 1u));
    for (var j = 0u; j < 4u; j++) {
      let n = column + lane.x + 16u * j;
      if (m < params.rows && n < params.outputs) {
        let at = m * params.stride + params.first + n;
        y[at] = select(0.0, y[at], ACCUMULATE) + factor * sum[i][j];
      }
    }
  }
}
