#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace nibble {

// The scores of a vocabulary by blocks whose largest are known: the best of 150,000 are found without a look at most of them.
class ScoreBlocks {
 public:
  static constexpr std::size_t block = 256;

  // Reads all scores, which must stay as they are; throws Diverged for one that is no finite number.
  void read(std::span<const float> scores);

  float largest() const { return largest_; }
  // The first that is as large as any.
  std::uint32_t best() const;
  // A score that `count` scores reach at least, close to the count-th: the count-th largest of the blocks' largest. Where there are
  // fewer blocks, the lowest float.
  float reached_by(std::size_t count);
  std::size_t blocks() const { return largest_of_.size(); }

  // Calls visit(id, f(score)) for all scores with f(score) >= least, by their ids. f never falls where its argument rises.
  template <typename F, typename Visit>
  void each_from(float least, const F& f, const Visit& visit) const {
    for (std::size_t b = 0; b < blocks(); ++b) {
      if (!(f(largest_of_[b]) >= least)) continue;
      const std::span<const float> scores = of(b);
      for (std::size_t i = 0; i < scores.size(); ++i) {
        if (const float value = f(scores[i]); value >= least) visit(static_cast<std::uint32_t>(b * block + i), value);
      }
    }
  }

  std::span<const float> of(std::size_t b) const { return scores_.subspan(b * block, std::min(block, scores_.size() - b * block)); }

 private:
  std::span<const float> scores_;
  std::vector<float> largest_of_;
  float largest_ = 0;
  std::vector<float> sorted_;
};

}  // namespace nibble
