#include "nibble/model/score_blocks.h"

#include "nibble/base/error.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

namespace nibble {
namespace {

// Floats in their order as integers, whose largest compilers find by vectors.
std::int32_t ordered(float value) {
  const auto bits = std::bit_cast<std::int32_t>(value);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
float from_ordered(std::int32_t key) { return std::bit_cast<float>(key ^ ((key >> 31) & 0x7fffffff)); }

}  // namespace

void ScoreBlocks::read(std::span<const float> scores) {
  scores_ = scores;
  largest_of_.resize((scores.size() + block - 1) / block);
  std::uint32_t exponents = 0;  // the highest bit says that one was full, as it is of infinity and of what is no number
  for (std::size_t b = 0; b < blocks(); ++b) {
    std::int32_t most = std::numeric_limits<std::int32_t>::min();
    for (const float score : of(b)) {
      most = std::max(most, ordered(score));
      exponents |= (std::bit_cast<std::uint32_t>(score) & 0x7fffffffu) + 0x00800000u;
    }
    largest_of_[b] = from_ordered(most);
  }
  if (exponents >> 31) {
    const auto bad = std::find_if(scores.begin(), scores.end(), [](float score) { return !std::isfinite(score); });
    check<Diverged>(false, "sampling", "The logit of token {} is not a finite number.", bad - scores.begin());
  }
  largest_ = *std::max_element(largest_of_.begin(), largest_of_.end());
}

std::uint32_t ScoreBlocks::best() const {
  const auto b = static_cast<std::size_t>(std::find(largest_of_.begin(), largest_of_.end(), largest_) - largest_of_.begin());
  const std::span<const float> scores = of(b);
  return static_cast<std::uint32_t>(b * block + static_cast<std::size_t>(std::find(scores.begin(), scores.end(), largest_) - scores.begin()));
}

float ScoreBlocks::reached_by(std::size_t count) {
  if (count > blocks()) return std::numeric_limits<float>::lowest();
  sorted_ = largest_of_;
  const auto at = sorted_.begin() + static_cast<std::ptrdiff_t>(count - 1);
  std::nth_element(sorted_.begin(), at, sorted_.end(), std::greater<float>());
  return *at;
}

}  // namespace nibble
