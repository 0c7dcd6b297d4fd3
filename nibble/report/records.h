#pragma once

#include <cstdint>
#include <optional>

namespace nibble {

// One update of the weights.
struct StepRecord {
  std::uint64_t step = 0, total_steps = 0;
  double epoch = 0;
  double loss = 0;  // mean over the step's trained tokens
  double grad_norm = 0;  // before clipping
  double learning_rate = 0;
  std::uint64_t tokens = 0;  // of all steps so far, trained or not
  double tokens_per_second = 0;
  std::uint64_t memory_bytes = 0;  // peak of the device's buffers
  double seconds_left = 0;
};

struct EvalRecord {
  std::uint64_t step = 0;
  double eval_loss = 0;
  double accuracy = 0;  // of the labelled tokens, those predicted
  std::uint64_t tokens = 0;
  bool best = false;  // the lowest so far
};

}  // namespace nibble
