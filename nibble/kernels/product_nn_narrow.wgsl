// product_nn.wgsl without dropout for GPUs and results as narrow as a LoRA's rank, N and K multiples of 4: LANES_K
// invocations share the inner dimension, each takes every LANES_K-th vector of x, and their sums are added up in order
// through workgroup memory.
// A workgroup computes TILE_M rows, a multiple of CHUNK, by LANES_N vectors of columns, an invocation all rows of one
// vector.
@group(0) @binding(1) var<storage, read> x: array<StoredX>;
@group(0) @binding(2) var<storage, read> w: array<StoredW>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

const COLUMNS = LANES_N * 4u;
const CHUNK = 4u;           // rows added up at a time
const PITCH = LANES_K + 1u;  // spreads sums over the banks of workgroup memory
var<workgroup> shares: array<vec4<f32>, CHUNK * LANES_N * PITCH>;

@compute @workgroup_size(LANES_N, LANES_K)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>,
        @builtin(local_invocation_index) index: u32) {
  let row = group.y * TILE_M;
  let length = params.inputs / 4u;
  let at_w = min(group.x * LANES_N + lane.x, length - 1u);
  var at_x: array<u32, TILE_M>;
  for (var i = 0u; i < TILE_M; i++) {
    at_x[i] = (min(row + i, params.rows - 1u) * params.stride + params.first) / 4u;
  }
  var sum: array<vec4<f32>, TILE_M>;
  for (var n = lane.y; n < params.outputs / 4u; n += LANES_K) {
    let start = at_w + 4u * n * length;
    let b0 = vec4<f32>(w[start]);
    let b1 = vec4<f32>(w[start + length]);
    let b2 = vec4<f32>(w[start + 2u * length]);
    let b3 = vec4<f32>(w[start + 3u * length]);
    for (var i = 0u; i < TILE_M; i++) {
      let a = vec4<f32>(x[at_x[i] + n]);
      sum[i] = fma(a.wwww, b3, fma(a.zzzz, b2, fma(a.yyyy, b1, fma(a.xxxx, b0, sum[i]))));
    }
  }
  for (var first = 0u; first < TILE_M; first += CHUNK) {
    for (var i = 0u; i < CHUNK; i++) {
      shares[(i * LANES_N + lane.x) * PITCH + lane.y] = sum[first + i];
    }
    workgroupBarrier();
    let m = row + first + index / COLUMNS;
    let k = group.x * COLUMNS + index % COLUMNS;
    if (index < CHUNK * COLUMNS && m < params.rows && k < params.inputs) {
      var total = 0.0;
      for (var l = 0u; l < LANES_K; l++) {
        total += shares[index / 4u * PITCH + l][index % 4u];
      }
      let at = m * params.inputs + k;
      let factor = params.scale * row_scale(m);
      y[at] = select(0.0, y[at], ACCUMULATE) + factor * total;
    }
    workgroupBarrier();
  }
}
