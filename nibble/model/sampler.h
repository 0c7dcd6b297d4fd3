#pragma once

#include "nibble/base/rng.h"
#include "nibble/kernels/choose_token.h"
#include "nibble/model/score_blocks.h"

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace nibble {

// How the next token is chosen from the logits.
struct SamplingOptions {
  float temperature = 0.0f;  // divides the logits; 0 takes the most likely token
  std::uint32_t top_k = 0;   // only so many of the most likely tokens, and what is as likely as the last of them; 0: all
  float top_p = 1.0f;        // the fewest of the most likely tokens whose probabilities reach this sum
  float min_p = 0.0f;        // only tokens with at least this share of the most likely one's probability
  float repetition_penalty = 1.0f;  // above 1 makes every token of the text so far less likely
  std::uint64_t seed = 0;
};

// Throws UsageError that names the value which is out of its range.
void check_sampling(const SamplingOptions& options);

// Chooses tokens as transformers' generate() does: penalty, temperature, top-k, top-p, min-p, in this order, each on what the
// ones before have left. Among equals the lowest id comes first. The same seed and logits give the same tokens.
class TokenSampler {
 public:
  explicit TokenSampler(const SamplingOptions& options);

  // A token given the logits (vocab) of its place and the text before it. Throws Diverged for a logit that is no number.
  std::uint32_t next(std::span<const float> logits, std::span<const std::uint32_t> text);

  // Whether so many of the best logits are mostly enough.
  bool looks_at_few(std::uint32_t best) const { return options_.temperature == 0.0f || (options_.top_k > 0 && options_.top_k <= best); }
  // The same token from the best of the logits alone; empty where it might be another with all of them, and nothing is drawn.
  std::optional<std::uint32_t> next(const BestOfRow& best, std::span<const std::uint32_t> text);

  // How the GPU can choose what next() will take; empty where so many of the best are not enough, or the text before them matters.
  std::optional<ForeseenTokens> foreseen(std::uint32_t best) const;

 private:
  struct Candidate {
    float score;
    std::uint32_t id;
  };
  // Among equals the lowest id comes first.
  static bool better(const Candidate& a, const Candidate& b);

  // Which of the first `ids` tokens the text has.
  void see(std::span<const std::uint32_t> text, std::size_t ids);
  float penalised(float logit) const;
  std::span<const float> penalised(std::span<const float> logits, std::span<const std::uint32_t> text);
  // Against the largest nothing overflows upwards, however low the temperature.
  float score(float logit) const;
  // What top-p and min-p leave of the candidates, and one of these.
  std::uint32_t draw_from_few(bool by_p);
  // All that have at least this score, by their ids, as candidates stay.
  void take_from(float least);
  void take_top_k();
  // Leaves as many of the best, and what equals the last of them; returns its score.
  float keep_top_k();
  // Those of all that top-p leaves.
  void take_top_p();
  // Leaves the fewest of the best whose weights reach the sum `wanted`; false, and all of them, where all together do not.
  bool keep_reaching(double wanted);
  void keep_min_p();
  std::uint32_t draw();
  std::uint32_t draw_from_all();
  double total_weight() const;
  // Of all, with that of each block in block_weights_.
  double weigh_blocks();
  // A share in [0, 1) at random.
  static double draw_share(Rng& rng);
  double random_place(double total) { return draw_share(rng_) * total; }

  SamplingOptions options_;
  Rng rng_;
  ScoreBlocks blocks_;
  float largest_ = 0;  // logit
  std::vector<Candidate> candidates_, selected_;
  std::vector<float> penalised_;
  std::vector<double> block_weights_;
  std::vector<bool> seen_;
};

}  // namespace nibble
