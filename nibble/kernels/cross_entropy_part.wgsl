// Cross entropy of logits that come in parts (R, P), slices of the vocabulary one after the other: columns first, first + 1, ...
// One workgroup a row. `gather` brings the row's statistics up to date, and with the last part gives its loss; `slopes` gives the
// gradient of a part by the statistics of all. Formulas: cross_entropy.wgsl, whose values these are but for the order of sums.
//
// Of a row: x the largest logit before the label, y the largest after it, z the sum of exp(l - max(x, y)) over all but the label,
// w the label's own.

struct Params {
  rows: u32,
  columns: u32,
  first: u32,
  begins: u32,  // of the parts
  ends: u32,
  factor: f32,
  weighted: u32,  // 0: every weight is 1, whatever is bound
  gamma: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> logits: array<Wide>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
@group(0) @binding(3) var<storage, read_write> stats: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> loss: array<f32>;
@group(0) @binding(5) var<storage, read_write> correct: array<u32>;

@group(0) @binding(4) var<storage, read> weights: array<f32>;
@group(0) @binding(5) var<storage, read_write> d_logits: array<Data>;
@group(0) @binding(6) var<storage, read_write> d_scale: array<f32>;

struct Total {
  maximum: f32,
  sum: f32,     // of exp(l - maximum) over all logits
  others: f32,  // the probability of all but the label
}

fn total_of(s: vec4<f32>) -> Total {
  let others_maximum = max(s.x, s.y);
  let maximum = max(others_maximum, s.w);
  let others = s.z * exp(others_maximum - maximum);
  let sum = others + exp(s.w - maximum);
  return Total(maximum, sum, others / sum);
}

@compute @workgroup_size(WORKGROUP)
fn gather(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let wides = params.columns / WIDTH;
  let label = labels[row];
  var before = LOWEST;
  var after = LOWEST;
  var sums = Wide(0.0);
  for (var i = lane; i < wides; i += WORKGROUP) {
    let value = logits[row * wides + i];
    let columns = wide_columns(i) + WideIndex(params.first);
    let is_before = columns < WideIndex(label);
    let is_after = columns > WideIndex(label);
    let old = max(before, after);
    before = max(before, wide_max(select(Wide(LOWEST), value, is_before)));
    after = max(after, wide_max(select(Wide(LOWEST), value, is_after)));
    let largest = max(before, after);
    sums = sums * exp(old - largest) + select(exp(value - Wide(largest)), Wide(0.0), columns == WideIndex(label));
  }
  let own_maximum = max(before, after);
  before = unordered(row_max(lane, ordered(before)));
  after = unordered(row_max(lane, ordered(after)));
  let maximum = max(before, after);
  let sum = row_sum(lane, wide_sum(sums) * exp(own_maximum - maximum));
  if (lane != 0u) {
    return;
  }
  var s = vec4(LOWEST, LOWEST, 0.0, not_a_number());
  if (params.begins == 0u) {
    s = stats[row];
  }
  let old = max(s.x, s.y);
  let largest = max(old, maximum);
  s = vec4(max(s.x, before), max(s.y, after), s.z * exp(old - largest) + sum * exp(maximum - largest), s.w);
  let at = label - params.first;
  if (label >= params.first && at < params.columns) {
    s.w = wide_element(logits[row * wides + at / WIDTH], at % WIDTH);
  }
  stats[row] = s;
  if (params.ends != 0u) {
    let total = total_of(s);
    loss[row] = log(total.sum) + (total.maximum - s.w);
    correct[row] = u32(s.w > s.x && s.w >= s.y);
  }
}

// The label's own slope, and what exp(l - maximum) is multiplied by for the others'.
struct Slopes {
  maximum: f32,
  own: f32,
  share: f32,
}

fn slopes_of(row: u32) -> Slopes {
  let total = total_of(stats[row]);
  var factor = params.factor;
  if (params.weighted != 0u) {
    factor *= weights[row];
  }
  factor = slope_factor(factor, params.gamma, total.others);
  return Slopes(total.maximum, -total.others * factor, factor / total.sum);
}

@compute @workgroup_size(WORKGROUP)
fn slopes(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let row_slopes = slopes_of(row);
  let label = labels[row];
  let wides = params.columns / WIDTH;
  for (var i = lane; i < wides; i += WORKGROUP) {
    let slope = exp(logits[row * wides + i] - Wide(row_slopes.maximum)) * row_slopes.share;
    let columns = wide_columns(i) + WideIndex(params.first);
    logits[row * wides + i] = select(slope, Wide(row_slopes.own), columns == WideIndex(label));
  }
}

@compute @workgroup_size(WORKGROUP)
fn scaled_slopes(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                 @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  // No other gradient of the row is larger than the label's, which is minus their sum.
  let row_slopes = slopes_of(row);
  let scale = row_scale(bitcast<u32>(row_slopes.own) & MAGNITUDE);
  if (lane == 0u) {
    d_scale[row] = scale.down;
  }
  let label = labels[row];
  let wides = params.columns / WIDTH;
  for (var i = lane; i < wides; i += WORKGROUP) {
    let slope = exp(logits[row * wides + i] - Wide(row_slopes.maximum)) * (row_slopes.share * scale.up);
    let columns = wide_columns(i) + WideIndex(params.first);
    d_logits[row * wides + i] = Data(select(slope, Wide(row_slopes.own * scale.up), columns == WideIndex(label)));
  }
}
