// product_nn.wgsl for GPUs and wide results, without dropout: the same sums, with x and w staged in workgroup memory as f32.
// A workgroup computes 64 x 64 of y, an invocation 4 rows, 16 apart, of one vector of columns; K is a multiple of 4.
@group(0) @binding(1) var<storage, read> x: array<ElementX>;
@group(0) @binding(2) var<storage, read> w: array<StoredW>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

const DEPTH = 16u;  // rows of w of one step
const PITCH = DEPTH + 1u;  // spreads rows over the banks of workgroup memory
var<workgroup> x_tile: array<f32, 64u * PITCH>;
var<workgroup> w_tile: array<vec4<f32>, DEPTH * 16u>;

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>) {
  let row = group.y * 64u;
  let column = group.x * 16u + lane.x;
  let length = params.inputs / 4u;
  let at_w = min(column, length - 1u);
  var sum: array<vec4<f32>, 4>;
  for (var begin = 0u; begin < params.outputs; begin += DEPTH) {
    for (var i = 0u; i < 4u; i++) {
      let m = min(row + lane.y + 16u * i, params.rows - 1u);
      let n = begin + lane.x;
      let value = f32(x[m * params.stride + params.first + min(n, params.outputs - 1u)]);
      x_tile[(lane.y + 16u * i) * PITCH + lane.x] = select(0.0, value, n < params.outputs);
    }
    w_tile[lane.y * 16u + lane.x] = vec4<f32>(w[at_w + min(begin + lane.y, params.outputs - 1u) * length]);
    workgroupBarrier();
    for (var n = 0u; n < DEPTH; n++) {
      let b = w_tile[n * 16u + lane.x];
      for (var i = 0u; i < 4u; i++) {
        sum[i] = fma(vec4<f32>(x_tile[(lane.y + 16u * i) * PITCH + n]), b, sum[i]);
      }
    }
    workgroupBarrier();
  }
  for (var i = 0u; i < 4u; i++) {
    let m = row + lane.y + 16u * i;
    let factor = params.scale * row_scale(min(m, params.rows - 1u));
    if (m < params.rows && column < length) {
      let at = m * length + column;
      y[at] = select(vec4<f32>(), y[at], ACCUMULATE) + factor * sum[i];
    }
  }
}
