#pragma once

#include <cstdint>
#include <optional>

namespace nibble {

// Means over pairs of answers, under TRL's names.
struct PreferenceRecord {
  double rewards_chosen = 0, rewards_rejected = 0;
  double rewards_accuracies = 0;  // part of the pairs whose chosen answer has the larger reward
  double rewards_margins = 0;
  double logps_chosen = 0, logps_rejected = 0;  // summed over an answer's tokens, in ORPO averaged
  double nll_loss = 0;                          // over the tokens of the chosen answers
};

// One update of the weights.
struct StepRecord {
  std::uint64_t step = 0, total_steps = 0;
  double epoch = 0;
  double loss = 0;  // mean over the step's trained tokens, or pairs
  double grad_norm = 0;  // before clipping
  double learning_rate = 0;
  std::uint64_t tokens = 0;  // of all steps so far, trained or not
  double tokens_per_second = 0;
  std::uint64_t memory_bytes = 0;  // peak of the device's buffers
  double seconds_left = 0;
  std::optional<PreferenceRecord> preference;  // where pairs are trained
};

struct EvalRecord {
  std::uint64_t step = 0;
  double eval_loss = 0;
  double accuracy = 0;  // of the labelled tokens, those predicted
  std::uint64_t tokens = 0;
  bool best = false;  // the lowest so far
  std::optional<PreferenceRecord> preference;  // of pairs, which have no accuracy of tokens
};

}  // namespace nibble
