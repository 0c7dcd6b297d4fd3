// RMS norm of rows, one workgroup a row; the row r of y comes from the row rows[r] of x, or r without GATHER.
// Forward:  y = x * inv_rms * weight, inv_rms = 1 / sqrt(mean(x^2) + epsilon); `forward_scaled` stores f16 times a power of two.
// Backward, where kernels of other names also store dx, or y, in f16 times a power of two:
//           dx += inv_rms * (dy * weight - x * inv_rms^2 * mean(dy * weight * x)); the rows of dx are distinct.
// A lane keeps KEPT wides of a row between its two passes, or, with KEPT 0, where rows are longer, reads them again.
// x and dx begin at row first_source; rows whose source is not in [first_source, end_source) are left to other dispatches.

// Of lib/rms_dy_sums.wgsl.
struct SplitSums {
  whole: u32,   // blocks before the first one that was split
  splits: u32,
  down: u32,    // blocks
  across: u32,
  band: u32,
  block_rows: u32,
  block_vectors: u32,
  scale: f32,
}

struct Params {
  sums: SplitSums,
  rows: u32,
  columns: u32,
  first_source: u32,
  end_source: u32,
  epsilon: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Wide>;
@group(0) @binding(2) var<storage, read> weight: array<Wide>;
@group(0) @binding(3) var<storage, read> rows: array<u32>;  // unused without GATHER

@group(0) @binding(4) var<storage, read_write> inv_rms: array<f32>;
// Y_AT is 5 in forward kernels. In backward ones Y_AT, PACKED_AT and SUMS_AT (of lib/rms_dy_sums.wgsl) are 7, 9 and 11 in some order,
// what the kernel has first.
@group(0) @binding(Y_AT) var<storage, read_write> y: array<Data>;
@group(0) @binding(Y_AT + 1u) var<storage, read_write> y_scale: array<f32>;

fn source_of(row: u32) -> u32 {
  if (GATHER) {
    return rows[row];
  }
  return params.first_source + row;
}

fn is_here(row: u32, source: u32) -> bool {
  return row < params.rows && source >= params.first_source && source < params.end_source;
}

fn inverse_rms(lane: u32, squares: f32) -> f32 {
  return 1.0 / sqrt(row_sum(lane, squares) / f32(params.columns) + params.epsilon);
}

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  let source = source_of(min(row, params.rows - 1u));
  if (!is_here(row, source)) {
    return;
  }
  let wides = params.columns / WIDTH;
  let first = (source - params.first_source) * wides;
  var squares = 0.0;
  for (var i = lane; i < wides; i += WORKGROUP) {
    let value = x[first + i];
    squares += wide_sum(value * value);
  }
  let inverse = inverse_rms(lane, squares);
  if (lane == 0u) {
    inv_rms[row] = inverse;
  }
  for (var i = lane; i < wides; i += WORKGROUP) {
    y[row * wides + i] = Data(x[first + i] * weight[i] * inverse);
  }
}

var<private> kept_x: array<Wide, max(KEPT, 1u)>;

// y of the row in f16, from what is kept of the row of x that begins at `first`; `largest` is the lane's largest |x * weight|.
fn store_y(lane: u32, row: u32, first: u32, wides: u32, inverse: f32, largest: u32) {
  // Rounding is monotonic, so this product is the largest of the products below.
  let scale = row_scale(bitcast<u32>(bitcast<f32>(row_max(lane, largest)) * inverse));
  if (lane == 0u) {
    y_scale[row] = scale.down;
  }
  for (var n = 0u; n < KEPT; n++) {
    let i = lane + n * WORKGROUP;
    if (i < wides) {
      y[row * wides + i] = Data(kept_x[n] * weight[i] * inverse * scale.up);
    }
  }
  for (var i = lane; KEPT == 0u && i < wides; i += WORKGROUP) {
    y[row * wides + i] = Data(x[first + i] * weight[i] * inverse * scale.up);
  }
}

@compute @workgroup_size(WORKGROUP)
fn forward_scaled(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                  @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  let source = source_of(min(row, params.rows - 1u));
  if (!is_here(row, source)) {
    return;
  }
  let wides = params.columns / WIDTH;
  let first = (source - params.first_source) * wides;
  var squares = 0.0;
  var largest = 0u;
  for (var n = 0u; n < KEPT; n++) {
    let i = lane + n * WORKGROUP;
    kept_x[n] = select(Wide(0.0), x[first + min(i, wides - 1u)], i < wides);
    squares += wide_sum(kept_x[n] * kept_x[n]);
    largest = max(largest, wide_max_bits(wide_bits(kept_x[n] * weight[min(i, wides - 1u)]) & WideIndex(MAGNITUDE)));
  }
  for (var i = lane; KEPT == 0u && i < wides; i += WORKGROUP) {
    let value = x[first + i];
    squares += wide_sum(value * value);
    largest = max(largest, wide_max_bits(wide_bits(value * weight[i]) & WideIndex(MAGNITUDE)));
  }
  let inverse = inverse_rms(lane, squares);
  if (lane == 0u) {
    inv_rms[row] = inverse;
  }
  store_y(lane, row, first, wides, inverse, largest);
}

@group(0) @binding(4) var<storage, read> kept_inv_rms: array<f32>;
// All kernels are compiled together, so that what a kernel does without must not lie where it has something else.
const DY_AT = select(5u, 7u, Y_AT == 5u);
@group(0) @binding(DY_AT + 1u) var<storage, read_write> dx: array<Wide>;
@group(0) @binding(PACKED_AT) var<storage, read_write> packed: array<Data>;
@group(0) @binding(PACKED_AT + 1u) var<storage, read_write> packed_scale: array<f32>;

var<private> kept_dy: array<Wide, max(KEPT, 1u)>;  // times the weight

// What x is taken out by: inv_rms^2 * mean(dy * weight * x) of a row of dy and the row of x that begins at `first`.
fn pull_of(lane: u32, row: u32, first: u32, wides: u32) -> f32 {
  var products = 0.0;
  load_dy(lane, row, wides);
  for (var n = 0u; n < KEPT; n++) {
    let i = lane + n * WORKGROUP;
    let at = min(i, wides - 1u);
    kept_x[n] = select(Wide(0.0), x[first + at], i < wides);
    kept_dy[n] *= weight[at];
    products += wide_sum(kept_dy[n] * kept_x[n]);
  }
  for (var i = lane; KEPT == 0u && i < wides; i += WORKGROUP) {
    products += wide_sum(dy_at(row, i, wides) * weight[i] * x[first + i]);
  }
  let inverse = kept_inv_rms[row];
  return row_sum(lane, products) / f32(params.columns) * inverse * inverse;
}

// dx of the row, from what pull_of keeps.
fn add_row(lane: u32, row: u32, first: u32, wides: u32, pull: f32) {
  let inverse = kept_inv_rms[row];
  for (var n = 0u; n < KEPT; n++) {
    let i = lane + n * WORKGROUP;
    if (i < wides) {
      dx[first + i] += inverse * (kept_dy[n] - kept_x[n] * pull);
    }
  }
  for (var i = lane; KEPT == 0u && i < wides; i += WORKGROUP) {
    dx[first + i] += inverse * (dy_at(row, i, wides) * weight[i] - x[first + i] * pull);
  }
}

// The same, and dx in f16; x is not kept any longer.
fn add_and_pack_row(lane: u32, row: u32, first: u32, wides: u32, pull: f32) {
  let inverse = kept_inv_rms[row];
  var largest = 0u;
  for (var n = 0u; n < KEPT; n++) {
    let i = lane + n * WORKGROUP;
    if (i < wides) {
      kept_x[n] = dx[first + i] + inverse * (kept_dy[n] - kept_x[n] * pull);
      dx[first + i] = kept_x[n];
      largest = max(largest, wide_max_bits(wide_bits(kept_x[n]) & WideIndex(MAGNITUDE)));
    }
  }
  for (var i = lane; KEPT == 0u && i < wides; i += WORKGROUP) {
    let sum = dx[first + i] + inverse * (dy_at(row, i, wides) * weight[i] - x[first + i] * pull);
    dx[first + i] = sum;
    largest = max(largest, wide_max_bits(wide_bits(sum) & WideIndex(MAGNITUDE)));
  }
  let scale = row_scale(row_max(lane, largest));
  if (lane == 0u) {
    packed_scale[row] = scale.down;
  }
  for (var n = 0u; n < KEPT; n++) {
    let i = lane + n * WORKGROUP;
    if (i < wides) {
      packed[first + i] = Data(kept_x[n] * scale.up);
    }
  }
  for (var i = lane; KEPT == 0u && i < wides; i += WORKGROUP) {
    packed[first + i] = Data(dx[first + i] * scale.up);
  }
}

// y as forward_scaled has it.
fn store_y_again(lane: u32, row: u32, first: u32, wides: u32) {
  var largest = 0u;
  for (var n = 0u; n < KEPT; n++) {
    let at = min(lane + n * WORKGROUP, wides - 1u);
    largest = max(largest, wide_max_bits(wide_bits(kept_x[n] * weight[at]) & WideIndex(MAGNITUDE)));
  }
  for (var i = lane; KEPT == 0u && i < wides; i += WORKGROUP) {
    largest = max(largest, wide_max_bits(wide_bits(x[first + i] * weight[i]) & WideIndex(MAGNITUDE)));
  }
  store_y(lane, row, first, wides, kept_inv_rms[row], largest);
}

@compute @workgroup_size(WORKGROUP)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  let source = source_of(min(row, params.rows - 1u));
  if (!is_here(row, source)) {
    return;
  }
  let wides = params.columns / WIDTH;
  let first = (source - params.first_source) * wides;
  add_row(lane, row, first, wides, pull_of(lane, row, first, wides));
}

@compute @workgroup_size(WORKGROUP)
fn backward_and_y(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                  @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let wides = params.columns / WIDTH;
  let pull = pull_of(lane, row, row * wides, wides);
  store_y_again(lane, row, row * wides, wides);
  add_row(lane, row, row * wides, wides, pull);
}

@compute @workgroup_size(WORKGROUP)
fn backward_packed(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                   @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let wides = params.columns / WIDTH;
  add_and_pack_row(lane, row, row * wides, wides, pull_of(lane, row, row * wides, wides));
}

@compute @workgroup_size(WORKGROUP)
fn backward_packed_and_y(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                         @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let wides = params.columns / WIDTH;
  let pull = pull_of(lane, row, row * wides, wides);
  store_y_again(lane, row, row * wides, wides);
  add_and_pack_row(lane, row, row * wides, wides, pull);
}
