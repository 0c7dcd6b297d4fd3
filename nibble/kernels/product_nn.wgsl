// y(M, K) [=|+=] kept(scale * row_scale[m] * x(M, N) * w(N, K)), in f32 arithmetic on f32 or f16 elements.
// An invocation computes TILE_M rows by TILE_N vectors of WIDTH columns, the vectors LANES_N apart: neighbours share rows of
// x and read neighbouring columns of w. Sums run over n in order, STEP of them a turn. Loads beyond an edge repeat the last
// row or vector. K is a multiple of WIDTH, N of STEP.
// x's rows have `stride` columns, of which the N from `first` on are read (w may be a slice of a larger weight).
@group(0) @binding(1) var<storage, read> x: array<ElementX>;
@group(0) @binding(2) var<storage, read> w: array<StoredW>;
@group(0) @binding(3) var<storage, read_write> y: array<Wide>;

@compute @workgroup_size(LANES_N, LANES_M)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>) {
  let row = (group.y * LANES_M + lane.y) * TILE_M;
  let column = group.x * (TILE_N * LANES_N) + lane.x;
  let length = params.inputs / WIDTH;
  var at_x: array<u32, TILE_M>;
  var at_w: array<u32, TILE_N>;
  for (var i = 0u; i < TILE_M; i++) {
    at_x[i] = min(row + i, params.rows - 1u) * params.stride + params.first;
  }
  for (var j = 0u; j < TILE_N; j++) {
    at_w[j] = min(column + j * LANES_N, length - 1u);
  }
  var sum: array<array<Wide, TILE_N>, TILE_M>;
  for (var begin = 0u; begin < params.outputs; begin += STEP) {
    for (var u = 0u; u < STEP; u++) {
      let n = begin + u;
      var b: array<Wide, TILE_N>;
      for (var j = 0u; j < TILE_N; j++) {
        b[j] = Wide(w[at_w[j] + n * length]);
      }
      for (var i = 0u; i < TILE_M; i++) {
        let a = Wide(f32(x[at_x[i] + n]));
        for (var j = 0u; j < TILE_N; j++) {
          sum[i][j] = fma(a, b[j], sum[i][j]);
        }
      }
    }
  }
  for (var i = 0u; i < TILE_M; i++) {
    let m = row + i;
    let factor = params.scale * row_scale(min(m, params.rows - 1u));
    for (var j = 0u; j < TILE_N; j++) {
      let k = column + j * LANES_N;
      if (m < params.rows && k < length) {
        let at = m * length + k;
        y[at] = select(Wide(0.0), y[at], ACCUMULATE) + kept(m, k * WIDTH, factor * sum[i][j]);
      }
    }
  }
}
