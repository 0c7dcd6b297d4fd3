// y(M, N) [=|+=] scale * row_scale[m] * kept(x)(M, K) * w(N, K)^T, in f32 arithmetic on f32 or f16 elements.
// An invocation computes TILE_M rows by TILE_N columns, the columns LANES_N apart: neighbours share rows of x and differ in
// rows of w. Sums run over k in order. Loads beyond an edge repeat the last row. K is a multiple of WIDTH.
// y's rows have `stride` columns, of which the N from `first` on are written (w may be a slice of a larger weight).
@group(0) @binding(1) var<storage, read> x: array<StoredX>;
@group(0) @binding(2) var<storage, read> w: array<StoredW>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(LANES_N, LANES_M)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>) {
  let row = (group.y * LANES_M + lane.y) * TILE_M;
  let column = group.x * (TILE_N * LANES_N) + lane.x;
  let length = params.inputs / WIDTH;
  var at_x: array<u32, TILE_M>;
  var at_w: array<u32, TILE_N>;
  for (var i = 0u; i < TILE_M; i++) {
    at_x[i] = min(row + i, params.rows - 1u) * length;
  }
  for (var j = 0u; j < TILE_N; j++) {
    at_w[j] = min(column + j * LANES_N, params.outputs - 1u) * length;
  }
  var sum: array<array<f32, TILE_N>, TILE_M>;
  for (var k = 0u; k < length; k++) {
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
  for (var i = 0u; i < TILE_M; i++) {
    let m = row + i;
    let factor = params.scale * row_scale(min(m, params.rows - 1u));
    for (var j = 0u; j < TILE_N; j++) {
      let n = column + j * LANES_N;
      if (m < params.rows && n < params.outputs) {
        let at = m * params.stride + params.first + n;
        y[at] = select(0.0, y[at], ACCUMULATE) + factor * sum[i][j];
      }
    }
  }
}
