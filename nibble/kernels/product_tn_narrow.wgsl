// product_tn.wgsl for GPUs where one operand is as narrow as a LoRA's rank: x if not WIDE_X, else w. N and K are
// multiples of 4. LANES_M invocations share the rows of a part, each takes every LANES_M-th, and their sums are added up in order
// through workgroup memory.
// A workgroup computes LANES_N vectors of the wide operand's columns by TILE_N vectors of the narrow one's, an invocation
// one vector of the former.
@group(0) @binding(1) var<storage, read> x: array<StoredX>;
@group(0) @binding(2) var<storage, read> w: array<StoredW>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

var<workgroup> shares: array<vec4<f32>, 4u * LANES_M * LANES_N>;

fn x_at(m: u32, i: u32) -> vec4<f32> {
  return row_scale(m) * w_row_scale(m) * vec4<f32>(x[(m * params.stride + params.first) / 4u + i]);
}

fn w_at(m: u32, i: u32) -> vec4<f32> {
  return kept(m, 4u * i, vec4<f32>(w[m * (params.inputs / 4u) + i]));
}

// Adds up what the invocations of a part have, for the narrow operand's vector `vector`, and writes four neighbours of
// the result's row: elements of a wide vector, or of a narrow one.
fn write_total(group: vec3<u32>, index: u32, wide_length: u32, narrow_length: u32, vector: u32) {
  var total = vec4<f32>();
  var at = 0u;
  var column = 0u;
  if (WIDE_X) {
    column = index / 4u;
    for (var l = 0u; l < LANES_M; l++) {
      let start = l * LANES_N + column;
      let next = LANES_M * LANES_N;
      total += vec4<f32>(shares[start][index % 4u], shares[start + next][index % 4u],
                         shares[start + 2u * next][index % 4u], shares[start + 3u * next][index % 4u]);
    }
    at = (group.z * params.outputs + 4u * (group.x * LANES_N + column) + index % 4u) * narrow_length + vector;
  } else {
    column = index % LANES_N;
    for (var l = 0u; l < LANES_M; l++) {
      total += shares[(index / LANES_N * LANES_M + l) * LANES_N + column];
    }
    at = (group.z * params.outputs + 4u * (vector) + index / LANES_N) * wide_length + group.x * LANES_N + column;
  }
  if (group.x * LANES_N + column < wide_length && vector < narrow_length) {
    y[at] = select(vec4<f32>(), y[at], ACCUMULATE) + params.scale * total;
  }
}

@compute @workgroup_size(LANES_N, LANES_M)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>,
        @builtin(local_invocation_index) index: u32) {
  let wide_length = select(params.inputs, params.outputs, WIDE_X) / 4u;
  let narrow_length = select(params.outputs, params.inputs, WIDE_X) / 4u;
  let wide = min(group.x * LANES_N + lane.x, wide_length - 1u);
  let narrow = group.y * TILE_N;
  let end = min((group.z + 1u) * params.share, params.rows);
  var sum: array<vec4<f32>, 4u * TILE_N>;
  for (var begin = group.z * params.share + lane.y; begin < end; begin += STEP * LANES_M) {
    var a: array<vec4<f32>, STEP>;
    for (var u = 0u; u < STEP; u++) {
      let m = min(begin + u * LANES_M, end - 1u);
      a[u] = vec4<f32>();
      if (WIDE_X) {
        a[u] = x_at(m, wide);
      } else {
        a[u] = w_at(m, wide);
      }
      a[u] = select(vec4<f32>(), a[u], begin + u * LANES_M < end);
    }
    for (var u = 0u; u < STEP; u++) {
      let m = min(begin + u * LANES_M, end - 1u);
      for (var j = 0u; j < TILE_N; j++) {
        let at = min(narrow + j, narrow_length - 1u);
        var b = vec4<f32>();
        if (WIDE_X) {
          b = w_at(m, at);
        } else {
          b = x_at(m, at);
        }
        sum[4u * j] = fma(a[u], b.xxxx, sum[4u * j]);
        sum[4u * j + 1u] = fma(a[u], b.yyyy, sum[4u * j + 1u]);
        sum[4u * j + 2u] = fma(a[u], b.zzzz, sum[4u * j + 2u]);
        sum[4u * j + 3u] = fma(a[u], b.wwww, sum[4u * j + 3u]);
      }
    }
  }
  for (var j = 0u; j < TILE_N; j++) {
    for (var e = 0u; e < 4u; e++) {
      shares[(e * LANES_M + lane.y) * LANES_N + lane.x] = sum[4u * j + e];
    }
    workgroupBarrier();
    if (index < 4u * LANES_N) {
      write_total(group, index, wide_length, narrow_length, narrow + j);
    }
    workgroupBarrier();
  }
}
