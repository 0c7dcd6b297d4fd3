// The router of a mixture of experts, one workgroup a token; EXPERTS and CHOSEN are of the model.
// Forward: CHOSEN times the largest probability that is left, of equal ones the first.
// Backward, with p the softmax, w the weights and c the sum of w dw over the chosen:
//   normalised: d_logit = w (dw - c) of the chosen, 0 of others;
//   else:       d_logit = p ([chosen] dw - c).
// WORKGROUP and lib/row_reduce.wgsl are those of row kernels.

struct Params {
  rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;

var<workgroup> probability: array<f32, EXPERTS>;
var<workgroup> key: array<u32, EXPERTS>;  // ordered as the probabilities, 0 of what has been chosen

// The larger the value, the larger the word.
fn ordered(value: f32) -> u32 {
  let bits = bitcast<u32>(value);
  return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

fn unordered(word: u32) -> f32 {
  return bitcast<f32>(select(~word, word & 0x7fffffffu, (word & 0x80000000u) != 0u));
}

// Leaves exp(logit - largest) in `probability` and returns their sum.
fn exponentials(row: u32, lane: u32) -> f32 {
  var largest = 0u;
  for (var e = lane; e < EXPERTS; e += WORKGROUP) {
    largest = max(largest, ordered(logits[row * EXPERTS + e]));
  }
  let top = unordered(row_max(lane, largest));
  var sum = 0.0;
  for (var e = lane; e < EXPERTS; e += WORKGROUP) {
    let value = exp(logits[row * EXPERTS + e] - top);
    probability[e] = value;
    sum += value;
  }
  return row_sum(lane, sum);
}

@group(0) @binding(2) var<storage, read_write> expert: array<u32>;
@group(0) @binding(3) var<storage, read_write> weight: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  let sum = exponentials(row, lane);
  for (var e = lane; e < EXPERTS; e += WORKGROUP) {
    probability[e] /= sum;
    key[e] = (bitcast<u32>(probability[e]) & 0x7fffffffu) + 1u;
  }
  workgroupBarrier();
  var of_chosen = 0.0;
  for (var j = 0u; j < CHOSEN; j++) {
    var largest = 0u;
    for (var e = lane; e < EXPERTS; e += WORKGROUP) {
      largest = max(largest, key[e]);
    }
    let found = row_max(lane, largest);
    var from_end = 0u;  // the first is the farthest from the end
    for (var e = lane; e < EXPERTS; e += WORKGROUP) {
      from_end = max(from_end, select(0u, EXPERTS - e, key[e] == found));
    }
    let first = EXPERTS - row_max(lane, from_end);
    of_chosen += probability[first];
    if (lane == 0u) {
      expert[row * CHOSEN + j] = first;
      weight[row * CHOSEN + j] = probability[first];
      key[first] = 0u;
    }
    workgroupBarrier();
  }
  if (NORMALISED && lane == 0u) {
    for (var j = 0u; j < CHOSEN; j++) {
      weight[row * CHOSEN + j] /= of_chosen;
    }
  }
}

@group(0) @binding(2) var<storage, read> chosen: array<u32>;
@group(0) @binding(3) var<storage, read> chosen_weight: array<f32>;
@group(0) @binding(4) var<storage, read> d_weight: array<f32>;
@group(0) @binding(5) var<storage, read_write> d_logits: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) lane: u32) {
  let row = linear_workgroup(group, groups);
  if (row >= params.rows) {
    return;
  }
  var c = 0.0;
  for (var j = 0u; j < CHOSEN; j++) {
    c += chosen_weight[row * CHOSEN + j] * d_weight[row * CHOSEN + j];
  }
  let sum = exponentials(row, lane);
  for (var e = lane; e < EXPERTS; e += WORKGROUP) {
    var slope = select(-c * (probability[e] / sum), 0.0, NORMALISED);
    for (var j = 0u; j < CHOSEN; j++) {
      if (chosen[row * CHOSEN + j] == e) {
        let w = chosen_weight[row * CHOSEN + j];
        slope += w * (d_weight[row * CHOSEN + j] - select(0.0, c, NORMALISED));
      }
    }
    d_logits[row * EXPERTS + e] = slope;
  }
}
