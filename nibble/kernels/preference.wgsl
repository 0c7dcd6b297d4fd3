// The loss of pairs of answers from the negative log-likelihoods of their labels, and what each label's gradient is to be
// multiplied by. One workgroup a pair. Of pair p the chosen answer has the labels [sides[2p], sides[2p + 1]), the rejected one
// [sides[2p + 1], sides[2p + 2]), neither empty nor beyond the labels there are. The formulas are in preference.h.

struct Params {
  pairs: u32,
  beta: f32,
  pair_factor: f32,
  token_factor: f32,
  has_reference: u32,  // 0: the reference's log-probabilities are 0, whatever is bound
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> loss: array<f32>;
@group(0) @binding(2) var<storage, read> sides: array<u32>;
@group(0) @binding(3) var<storage, read> reference: array<f32>;
@group(0) @binding(4) var<storage, read_write> statistics: array<PairStatistics>;
@group(0) @binding(5) var<storage, read_write> weights: array<f32>;

// As PreferenceStatistics of preference.h.
struct PairStatistics {
  loss: f32,
  chosen_nll: f32,
  chosen_logps: f32,
  rejected_logps: f32,
  chosen_reward: f32,
  rejected_reward: f32,
  preferred: f32,
}

// 1 - e^x of a mean log-probability is held above this: a certain answer has no odds.
const LEAST_DOUBT = 1e-7;

fn term(i: u32) -> f32 {
  return loss[i];
}

// log(1 + x) for x in [0, 1]; near 0 the sum 1 + x would lose the digits of x.
fn log_of_one_plus(x: f32) -> f32 {
  return select(log(1.0 + x), x * (1.0 - x * (0.5 - x / 3.0)), x < 0.01);
}

// -log(sigmoid(z))
fn log_loss(z: f32) -> f32 {
  return max(-z, 0.0) + log_of_one_plus(exp(-abs(z)));
}

// sigmoid(-z), the slope of -log_loss.
fn log_loss_slope(z: f32) -> f32 {
  let small = exp(-abs(z));
  return select(1.0, small, z >= 0.0) / (1.0 + small);
}

// 1 - e^x for x <= 0
fn doubt(x: f32) -> f32 {
  let series = -x * (1.0 + x * (0.5 + x * (1.0 / 6.0 + x / 24.0)));
  return max(select(1.0 - exp(x), series, x > -0.05), LEAST_DOUBT);
}

struct Pair {
  statistics: PairStatistics,
  chosen_weight: f32,
  rejected_weight: f32,
}

fn dpo(pair: u32, chosen_nll: f32, rejected_nll: f32) -> Pair {
  var chosen_reference = 0.0;
  var rejected_reference = 0.0;
  if (params.has_reference != 0u) {
    chosen_reference = reference[2u * pair];
    rejected_reference = reference[2u * pair + 1u];
  }
  let chosen_reward = params.beta * (-chosen_nll - chosen_reference);
  let rejected_reward = params.beta * (-rejected_nll - rejected_reference);
  let margin = chosen_reward - rejected_reward;
  let weight = params.pair_factor * params.beta * log_loss_slope(margin);
  return Pair(PairStatistics(log_loss(margin), chosen_nll, -chosen_nll, -rejected_nll, chosen_reward, rejected_reward,
                             f32(chosen_reward > rejected_reward)),
              weight, -weight);
}

fn orpo(chosen_nll: f32, rejected_nll: f32, chosen_labels: f32, rejected_labels: f32) -> Pair {
  let chosen = -chosen_nll / chosen_labels;
  let rejected = -rejected_nll / rejected_labels;
  let chosen_doubt = doubt(chosen);
  let rejected_doubt = doubt(rejected);
  let log_odds_ratio = (chosen - rejected) - (log(chosen_doubt) - log(rejected_doubt));
  let slope = params.pair_factor * params.beta * log_loss_slope(log_odds_ratio);
  let chosen_reward = params.beta * chosen;
  let rejected_reward = params.beta * rejected;
  return Pair(PairStatistics(params.beta * log_loss(log_odds_ratio), chosen_nll, chosen, rejected, chosen_reward,
                             rejected_reward, f32(chosen_reward > rejected_reward)),
              params.token_factor + slope / (chosen_doubt * chosen_labels), -slope / (rejected_doubt * rejected_labels));
}

// What became of a pair; its statistics are written on the way.
fn judge(pair: u32, lane: u32) -> Pair {
  let result = pair_of(pair, lane);
  if (lane == 0u) {
    statistics[pair] = result.statistics;
  }
  return result;
}

fn pair_of(pair: u32, lane: u32) -> Pair {
  let chosen_begin = sides[2u * pair];
  let rejected_begin = sides[2u * pair + 1u];
  let end = sides[2u * pair + 2u];
  let chosen_nll = block_sum(lane, chosen_begin, rejected_begin);
  let rejected_nll = block_sum(lane, rejected_begin, end);
  if (ORPO) {
    return orpo(chosen_nll, rejected_nll, f32(rejected_begin - chosen_begin), f32(end - rejected_begin));
  }
  return dpo(pair, chosen_nll, rejected_nll);
}

@compute @workgroup_size(WORKGROUP)
fn statistics_only(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                   @builtin(local_invocation_index) lane: u32) {
  let pair = linear_workgroup(group, groups);
  if (pair >= params.pairs) {
    return;
  }
  judge(pair, lane);
}

@compute @workgroup_size(WORKGROUP)
fn statistics_and_weights(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                          @builtin(local_invocation_index) lane: u32) {
  let pair = linear_workgroup(group, groups);
  if (pair >= params.pairs) {
    return;
  }
  let result = judge(pair, lane);
  let rejected_begin = sides[2u * pair + 1u];
  for (var i = sides[2u * pair] + lane; i < sides[2u * pair + 2u]; i += WORKGROUP) {
    weights[i] = select(result.rejected_weight, result.chosen_weight, i < rejected_begin);
  }
}
