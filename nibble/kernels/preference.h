#pragma once

#include "nibble/kernels/kernel.h"

#include <cstdint>
#include <string_view>

namespace nibble {

enum class PreferenceLoss { dpo, orpo };

std::string_view name_of(PreferenceLoss loss);

// What is known of a pair of answers: a row of Preference::statistics, in this order.
struct PreferenceStatistics {
  float loss;                             // without ORPO's likelihood of the chosen answer
  float chosen_nll;                       // summed over the chosen answer's labels
  float chosen_logps, rejected_logps;     // log-probabilities: DPO's summed, ORPO's averaged over the labels
  float chosen_reward, rejected_reward;   // beta times these, DPO's less those of the reference
  float preferred;                        // 1 where the chosen reward is the larger
};
constexpr std::uint32_t preference_statistics = sizeof(PreferenceStatistics) / sizeof(float);

// Losses of P pairs of answers, a chosen and a rejected one. With c and r the sums (DPO) or means (ORPO) of the labels'
// log-probabilities, and c0, r0 the reference's sums:
//   DPO (Rafailov et al. 2023)  -log sigmoid(beta ((c - c0) - (r - r0)))
//   ORPO (Hong et al. 2024)     -beta log sigmoid(log(odds(c) / odds(r))), odds(x) = e^x / (1 - e^x)
// Written (=): each pair's statistics and, where asked for, each label's weight: the derivative by the label's negative
// log-likelihood of pair_factor * sum of the pairs' losses, in ORPO + token_factor * sum of the chosen answers' likelihoods.
struct Preference {
  PreferenceLoss kind = PreferenceLoss::dpo;
  Tensor loss;              // (R) f32, negative log-likelihoods of the labels
  Tensor sides;             // (2P + 1) u32: where the labels of chosen and rejected answers begin in turn, and their end
  Tensor reference;         // (2P) f32: c0 and r0 in turn; none: 0
  Tensor statistics;        // (P, preference_statistics) f32
  Tensor weights;           // (R) f32; none: statistics alone
  float beta = 0.1f;        // in ORPO the paper's lambda
  float pair_factor = 1;    // 1 / pairs of the whole step
  float token_factor = 0;   // ORPO: 1 / chosen labels of the whole step
};
void record(gpu::Recorder& recorder, const Preference& op);

// total[k] = or += the sum of column k of the statistics, pair after pair.
struct PreferenceTotal {
  Tensor statistics;  // (P, preference_statistics) f32
  Tensor total;       // (preference_statistics) f32
  bool accumulate = false;
};
void record(gpu::Recorder& recorder, const PreferenceTotal& op);

}  // namespace nibble
