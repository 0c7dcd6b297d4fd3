// Rows of W + scaling * B A, W (N, K) in NF4, and what DoRA makes of their norms. A workgroup takes ROWS rows; each lane goes
// through words of eight columns, for which it reads A once for all rows. K is a multiple of 64.
struct Params {
  rows: u32,
  columns: u32,
  rank: u32,
  scaling: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> packed: array<u32>;    // (N, K / 8)
@group(0) @binding(2) var<storage, read> absmax: array<f32>;    // (N, K / 64)
@group(0) @binding(3) var<storage, read> a: array<vec4<f32>>;   // (r, K / 4)
@group(0) @binding(4) var<storage, read> b: array<f32>;         // (N, r)

// The norms of the rows from `first` on; those beyond the last one are that one's.
fn row_norms(lane: u32, first: u32) -> array<f32, ROWS> {
  let words = params.columns / 8u;
  var squares: array<f32, ROWS>;
  var low: array<vec4<f32>, ROWS>;
  var high: array<vec4<f32>, ROWS>;
  for (var word = lane; word < words; word += WORKGROUP) {
    for (var i = 0u; i < ROWS; i++) {
      low[i] = vec4<f32>();
      high[i] = vec4<f32>();
    }
    for (var k = 0u; k < params.rank; k++) {
      let at = k * 2u * words + 2u * word;
      let a_low = a[at];
      let a_high = a[at + 1u];
      for (var i = 0u; i < ROWS; i++) {
        let left = b[min(first + i, params.rows - 1u) * params.rank + k];
        low[i] += left * a_low;
        high[i] += left * a_high;
      }
    }
    for (var i = 0u; i < ROWS; i++) {
      let at = min(first + i, params.rows - 1u) * words + word;
      let codes = packed[at];
      let scale = absmax[at / 8u];
      let w_low = nf4_codes4(codes) * scale + params.scaling * low[i];
      let w_high = nf4_codes4(codes >> 16u) * scale + params.scaling * high[i];
      squares[i] += dot(w_low, w_low) + dot(w_high, w_high);
    }
  }
  var norms: array<f32, ROWS>;
  for (var i = 0u; i < ROWS; i++) {
    norms[i] = sqrt(row_sum(lane, squares[i]));
  }
  return norms;
}

@group(0) @binding(5) var<storage, read_write> norm: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn norms(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
         @builtin(local_invocation_index) lane: u32) {
  let first = linear_workgroup(group, groups) * ROWS;
  if (first >= params.rows) {
    return;
  }
  let found = row_norms(lane, first);
  for (var i = 0u; i < ROWS; i++) {
    if (lane == 0u && first + i < params.rows) {
      norm[first + i] = found[i];
    }
  }
}

@group(0) @binding(5) var<storage, read> magnitude: array<f32>;
@group(0) @binding(6) var<storage, read_write> absmax_to: array<f32>;
@group(0) @binding(7) var<storage, read_write> b_to: array<f32>;
@group(0) @binding(8) var<storage, read_write> gain: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn gains(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
         @builtin(local_invocation_index) lane: u32) {
  let first = linear_workgroup(group, groups) * ROWS;
  if (first >= params.rows) {
    return;
  }
  let found = row_norms(lane, first);
  let blocks = params.columns / 64u;
  for (var i = 0u; i < ROWS; i++) {
    let row = first + i;
    if (row >= params.rows) {
      continue;
    }
    var factor = 0.0;
    if (found[i] != 0.0) {
      factor = magnitude[row] / found[i];
    }
    for (var block = lane; block < blocks; block += WORKGROUP) {
      absmax_to[row * blocks + block] = absmax[row * blocks + block] * factor;
    }
    for (var k = lane; k < params.rank; k += WORKGROUP) {
      b_to[row * params.rank + k] = b[row * params.rank + k] * factor;
    }
    if (lane == 0u) {
      gain[row] = factor;
    }
  }
}
