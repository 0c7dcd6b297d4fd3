// product_nt.wgsl and, TURNED, product_nn.wgsl for processors with vectors of eight lanes and operands whose inner dimension
// is a multiple of 8: the same sums, 8 of the inner dimension a turn. A workgroup is one vector of lanes; an
// invocation computes TILE_M rows by TILE_N columns of y, 8 apart. TURNED has no dropout. See product_nf4.wgsl for what the
// software adapter is good at, and for INDEX.
@group(0) @binding(1) var<storage, read> x: array<vec4<ElementX>>;
@group(0) @binding(2) var<storage, read> w: array<ElementW>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

const LANES = 8u;
const INDEX = 0x0fffffffu;

fn dot_columns(a: vec4<f32>, b0: f32, b1: f32, b2: f32, b3: f32, c: f32) -> f32 {
  return fma(a.w, b3, fma(a.z, b2, fma(a.y, b1, fma(a.x, b0, c))));
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = group.y * TILE_M;
  let first = group.x * (LANES * TILE_N);
  let width = select(params.outputs, params.inputs, TURNED);
  let inner = select(params.inputs, params.outputs, TURNED);
  var at_x: array<u32, TILE_M>;
  for (var i = 0u; i < TILE_M; i++) {
    let m = min(row + i, params.rows - 1u);
    at_x[i] = select(m * params.inputs, m * params.stride + params.first, TURNED) / 4u;
  }
  var column: array<u32, TILE_N>;
  for (var j = 0u; j < TILE_N; j++) {
    column[j] = min(first + lane + LANES * j, width - 1u);
  }
  var sum: array<array<f32, TILE_N>, TILE_M>;
  for (var begin = 0u; begin < inner; begin += 8u) {
    var b: array<array<f32, TILE_N>, 8>;
    for (var j = 0u; j < TILE_N; j++) {
      for (var l = 0u; l < 8u; l++) {
        b[l][j] = f32(w[select(column[j] * inner + begin + l, (begin + l) * width + column[j], TURNED)]);
      }
    }
    for (var i = 0u; i < TILE_M; i++) {
      let at = (at_x[i] + begin / 4u) & INDEX;
      var a0 = vec4<f32>(x[at]);
      var a1 = vec4<f32>(x[at + 1u]);
      if (!TURNED) {
        a0 = kept(row + i, begin, a0);
        a1 = kept(row + i, begin + 4u, a1);
      }
      for (var j = 0u; j < TILE_N; j++) {
        let half = dot_columns(a0, b[0][j], b[1][j], b[2][j], b[3][j], sum[i][j]);
        sum[i][j] = dot_columns(a1, b[4][j], b[5][j], b[6][j], b[7][j], half);
      }
      // Never so: product_nf4.wgsl has the reason.
      if (params.share != 0u) {
        for (var j = 0u; j < TILE_N; j++) {
          y[j] = sum[i][j];
        }
      }
    }
  }
  for (var i = 0u; i < TILE_M; i++) {
    let m = row + i;
    let factor = params.scale * row_scale(min(m, params.rows - 1u));
    for (var j = 0u; j < TILE_N; j++) {
      if (m < params.rows && first + lane + LANES * j < width) {
        let at = select(m * params.stride + params.first, m * width, TURNED) + column[j];
        y[at] = select(0.0, y[at], ACCUMULATE) + factor * sum[i][j];
      }
    }
  }
}
