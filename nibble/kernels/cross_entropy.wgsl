// Cross entropy of rows of logits (R, V) against labels (R), one workgroup a row.
// loss = log(sum_j exp(l_j)) - l_label; correct = no other logit is larger, nor equal and before the label;
// d_j = (exp(l_j) / sum - [j is the label]) * factor * weight * (1 - p_label)^gamma. The label's own logit is kept out of the
// sums: its gradient is minus the sum of the others, which 1 - p would lose to cancellation. Logits are read twice, the second
// time from the end, of which caches may still have some, and written by `loss_and_slopes`.

struct Params {
  rows: u32,
  columns: u32,
  factor: f32,
  weighted: u32,  // 0: every weight is 1, whatever is bound
  gamma: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> logits: array<Wide>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
@group(0) @binding(3) var<storage, read_write> loss: array<f32>;
@group(0) @binding(4) var<storage, read_write> correct: array<u32>;
@group(0) @binding(5) var<storage, read> weights: array<f32>;
@group(0) @binding(6) var<storage, read_write> d_logits: array<Data>;
@group(0) @binding(7) var<storage, read_write> d_scale: array<f32>;

struct RowStats {
  maximum: f32,
  to_probability: f32,  // exp(l - maximum) times this
  others: f32,          // the probability of all but the label
}

fn row_stats(row: u32, lane: u32) -> RowStats {
  let wides = params.columns / WIDTH;
  let first = row * wides;
  let label = labels[row];
  var own = not_a_number();
  if (label < params.columns) {
    own = wide_element(logits[first + label / WIDTH], label % WIDTH);
  }
  // The largest of the lane's other logits so far, and the sum of their exp relative to it.
  var maximum = LOWEST;
  var sums = Wide(0.0);
  var beaten = 0u;
  for (var i = lane; i < wides; i += WORKGROUP) {
    let value = logits[first + i];
    let columns = wide_columns(i);
    let is_label = columns == WideIndex(label);
    let largest = max(maximum, wide_max(select(value, Wide(LOWEST), is_label)));
    sums = sums * exp(maximum - largest) + select(exp(value - Wide(largest)), Wide(0.0), is_label);
    maximum = largest;
    beaten |= u32(wide_any(select(value > Wide(own), value >= Wide(own), columns < WideIndex(label))));
  }
  let others_maximum = unordered(row_max(lane, ordered(maximum)));
  let others_sum = row_sum(lane, wide_sum(sums) * exp(maximum - others_maximum));
  beaten = row_max(lane, beaten);

  let top = max(others_maximum, own);
  let others = others_sum * exp(others_maximum - top);
  let total = others + exp(own - top);
  if (lane == 0u) {
    loss[row] = log(total) + (top - own);
    correct[row] = u32(beaten == 0u && (bitcast<u32>(own) & MAGNITUDE) <= 0x7f800000u);
  }
  return RowStats(top, 1.0 / total, others / total);
}

// What the row's gradient is multiplied by.
fn row_factor(row: u32, others: f32) -> f32 {
  var factor = params.factor;
  if (params.weighted != 0u) {
    factor *= weights[row];
  }
  return slope_factor(factor, params.gamma, others);
}

@compute @workgroup_size(WORKGROUP)
fn loss_only(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
             @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  _ = row_stats(row, lane);
}

@compute @workgroup_size(WORKGROUP)
fn loss_and_slopes(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                   @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let stats = row_stats(row, lane);
  let factor = row_factor(row, stats.others);
  let own = -stats.others * factor;
  let wides = params.columns / WIDTH;
  for (var strip = (wides + WORKGROUP - 1u) / WORKGROUP; strip > 0u; strip--) {
    let i = (strip - 1u) * WORKGROUP + lane;
    if (i >= wides) {
      continue;
    }
    let slope = exp(logits[row * wides + i] - Wide(stats.maximum)) * (stats.to_probability * factor);
    logits[row * wides + i] = select(slope, Wide(own), wide_columns(i) == WideIndex(labels[row]));
  }
}

@compute @workgroup_size(WORKGROUP)
fn loss_and_scaled_slopes(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                          @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let stats = row_stats(row, lane);
  // No other gradient of the row is larger than the label's, which is minus their sum.
  let factor = row_factor(row, stats.others);
  let own = -stats.others * factor;
  let scale = row_scale(bitcast<u32>(own) & MAGNITUDE);
  if (lane == 0u) {
    d_scale[row] = scale.down;
  }
  let wides = params.columns / WIDTH;
  for (var strip = (wides + WORKGROUP - 1u) / WORKGROUP; strip > 0u; strip--) {
    let i = (strip - 1u) * WORKGROUP + lane;
    if (i >= wides) {
      continue;
    }
    let slope = exp(logits[row * wides + i] - Wide(stats.maximum)) * (stats.to_probability * factor * scale.up);
    d_logits[row * wides + i] = Data(select(slope, Wide(own * scale.up), wide_columns(i) == WideIndex(labels[row])));
  }
}
