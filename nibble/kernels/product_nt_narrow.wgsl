// product_nt.wgsl for GPUs and results as narrow as a LoRA's rank: LANES_K invocations share the inner dimension, each
// takes every LANES_K-th vector, and their sums are added up in order through workgroup memory.
// A workgroup computes TILE_M rows, a multiple of CHUNK, by COLUMNS columns, an invocation all rows of TILE_N columns.
@group(0) @binding(1) var<storage, read> x: array<StoredX>;
@group(0) @binding(2) var<storage, read> w: array<StoredW>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

const COLUMNS = LANES_N * TILE_N;
const CHUNK = 4u;           // rows added up at a time
const PITCH = LANES_K + 1u;  // spreads sums over the banks of workgroup memory
var<workgroup> shares: array<f32, CHUNK * COLUMNS * PITCH>;

@compute @workgroup_size(LANES_K, LANES_N)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>,
        @builtin(local_invocation_index) index: u32) {
  let row = group.y * TILE_M;
  let column = group.x * COLUMNS + lane.y * TILE_N;
  let length = params.inputs / WIDTH;
  var at_x: array<u32, TILE_M>;
  var at_w: array<u32, TILE_N>;
  for (var i = 0u; i < TILE_M; i++) {
    at_x[i] = min(row + i, params.rows - 1u) * length;
  }
  for (var j = 0u; j < TILE_N; j++) {
    at_w[j] = min(column + j, params.outputs - 1u) * length;
  }
  var sum: array<array<f32, TILE_N>, TILE_M>;
  for (var k = lane.x; k < length; k += LANES_K) {
    var b: array<Wide, TILE_N>;
    for (var j = 0u; j < TILE_N; j++) {
      b[j] = Wide(w[at_w[j] + k]);
    }
    for (var i = 0u; i < TILE_M; i++) {
      let a = kept(row + i, k * WIDTH, Wide(x[at_x[i] + k]));
      for (var j = 0u; j < TILE_N; j++) {
        sum[i][j] = dot_add(a, b[j], sum[i][j]);
      }
    }
  }
  for (var first = 0u; first < TILE_M; first += CHUNK) {
    for (var i = 0u; i < CHUNK; i++) {
      for (var j = 0u; j < TILE_N; j++) {
        shares[(i * COLUMNS + lane.y * TILE_N + j) * PITCH + lane.x] = sum[first + i][j];
      }
    }
    workgroupBarrier();
    let m = row + first + index / COLUMNS;
    let n = group.x * COLUMNS + index % COLUMNS;
    if (index < CHUNK * COLUMNS && m < params.rows && n < params.outputs) {
      var total = 0.0;
      for (var l = 0u; l < LANES_K; l++) {
        total += shares[index * PITCH + l];
      }
      let at = m * params.stride + params.first + n;
      y[at] = select(0.0, y[at], ACCUMULATE) + params.scale * row_scale(m) * total;
    }
    workgroupBarrier();
  }
}
