#pragma once

#include "nibble/kernels/best_scores.h"

#include <array>

namespace nibble {

// How a token is taken from the best scores of a row, as in SamplingOptions (nibble/model/sampler.h).
struct SamplingRule {
  float temperature = 0;  // 0: the most likely one
  std::uint32_t top_k = 0;  // from 1 to best_scores_found() where the temperature is above 0
  float top_p = 1, min_p = 0;

  bool operator==(const SamplingRule&) const = default;
};

// The choice of a text's next token and of the one after it, with the draws of both.
struct ForeseenTokens {
  SamplingRule choice;
  std::array<float, 2> draws;
};

// tokens[r] = what a sampler takes from the list of row r with such a draw, so that work that needs it may be submitted before the host
// has seen the list. Sums are in f32, so where a draw falls close to the bound between two tokens it may be the other one.
struct ChooseToken {
  BestScoresRoom room;
  SamplingRule choice;
  Tensor draws;   // (rows) f32 in [0, 1); not looked at where the temperature is 0
  Tensor tokens;  // (rows) u32; kept in the lists too
};
void record(gpu::Recorder& recorder, const ChooseToken& op);

// From a row's list.
std::uint32_t chosen_token(std::span<const std::uint32_t> list);

}  // namespace nibble
