// y(N, K) [=|+=] scale * sum over rows m of x_scale[m] * w_scale[m] * x[m, n] * kept(w)[m, k], the gradient of a weight, for
// x(M, N) and w(M, K) of f32 or f16 elements in f32 arithmetic. Workgroups of id z sum `share` rows each and write the z-th
// part(N, K); where there are several, product_sum.wgsl adds them up.
// An invocation computes TILE_M columns of x by TILE_N vectors of WIDTH columns of w, the vectors LANES_N apart. Sums run over
// m in order, STEP of them a turn (beyond the end with factor 0). Loads beyond an edge repeat the last column or vector. K is a multiple of WIDTH.
// x's rows have `stride` columns, of which the N from `first` on are taken.
@group(0) @binding(1) var<storage, read> x: array<ElementX>;
@group(0) @binding(2) var<storage, read> w: array<StoredW>;
@group(0) @binding(3) var<storage, read_write> y: array<Wide>;

@compute @workgroup_size(LANES_N, LANES_M)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>) {
  let output = (group.y * LANES_M + lane.y) * TILE_M;
  let column = group.x * (TILE_N * LANES_N) + lane.x;
  let length = params.inputs / WIDTH;
  var at_x: array<u32, TILE_M>;
  var at_w: array<u32, TILE_N>;
  for (var i = 0u; i < TILE_M; i++) {
    at_x[i] = params.first + min(output + i, params.outputs - 1u);
  }
  for (var j = 0u; j < TILE_N; j++) {
    at_w[j] = min(column + j * LANES_N, length - 1u);
  }
  var sum: array<array<Wide, TILE_N>, TILE_M>;
  let end = min((group.z + 1u) * params.share, params.rows);
  for (var begin = group.z * params.share; begin < end; begin += STEP) {
    for (var u = 0u; u < STEP; u++) {
      let m = min(begin + u, end - 1u);
      let factor = select(0.0, row_scale(m) * w_row_scale(m), begin + u < end);
      var b: array<Wide, TILE_N>;
      for (var j = 0u; j < TILE_N; j++) {
        b[j] = kept(m, at_w[j] * WIDTH, Wide(w[at_w[j] + m * length]));
      }
      for (var i = 0u; i < TILE_M; i++) {
        let a = Wide(factor * f32(x[at_x[i] + m * params.stride]));
        for (var j = 0u; j < TILE_N; j++) {
          sum[i][j] = fma(a, b[j], sum[i][j]);
        }
      }
    }
  }
  for (var i = 0u; i < TILE_M; i++) {
    let n = output + i;
    for (var j = 0u; j < TILE_N; j++) {
      let k = column + j * LANES_N;
      if (n < params.outputs && k < length) {
        let at = (group.z * params.outputs + n) * length + k;
        y[at] = select(Wide(0.0), y[at], ACCUMULATE) + params.scale * sum[i][j];
      }
    }
  }
}
