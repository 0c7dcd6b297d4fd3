#include "nibble/model/sampler.h"

#include "nibble/base/error.h"

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

// Of a score that is 0 for the most likely token.
double weight(float score) { return std::exp(double{score}); }

}  // namespace

void check_sampling(const SamplingOptions& o) {
  constexpr std::string_view where = "sampling";
  check<UsageError>(o.temperature >= 0 && std::isfinite(o.temperature), where,
                    "The temperature is {}; it must be a number from 0 on.", o.temperature);
  check<UsageError>(o.top_p > 0 && o.top_p <= 1, where, "top-p is {}; it must be above 0 and at most 1.", o.top_p);
  check<UsageError>(o.min_p >= 0 && o.min_p <= 1, where, "min-p is {}; it must be from 0 to 1.", o.min_p);
  check<UsageError>(o.repetition_penalty > 0 && std::isfinite(o.repetition_penalty), where,
                    "The repetition penalty is {}; it must be above 0.", o.repetition_penalty);
}

TokenSampler::TokenSampler(const SamplingOptions& options) : options_(options), rng_(options.seed) {
  check_sampling(options);
}

std::uint32_t TokenSampler::next(std::span<const float> logits, std::span<const std::uint32_t> text) {
  check(!logits.empty(), "sampling", "There are no logits to choose from.");
  candidates_.resize(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const auto id = static_cast<std::uint32_t>(i);
    check<Diverged>(std::isfinite(logits[i]), "sampling", "The logit of token {} is not a finite number.", id);
    candidates_[i] = {logits[i], id};
  }
  if (options_.repetition_penalty != 1.0f) penalise(text);
  const auto best = std::max_element(candidates_.begin(), candidates_.end(),
                                     [](const Candidate& a, const Candidate& b) { return a.score < b.score; });
  if (options_.temperature == 0.0f) return best->id;
  // Against the largest nothing overflows upwards, however low the temperature.
  const float largest = best->score;
  for (Candidate& candidate : candidates_) candidate.score = (candidate.score - largest) / options_.temperature;
  keep_top_k();
  keep_top_p();
  keep_min_p();
  return draw();
}

void TokenSampler::penalise(std::span<const std::uint32_t> text) {
  seen_.assign(candidates_.size(), false);
  for (const std::uint32_t token : text) {
    if (token >= candidates_.size() || seen_[token]) continue;
    seen_[token] = true;
    float& score = candidates_[token].score;
    score = score < 0 ? score * options_.repetition_penalty : score / options_.repetition_penalty;
  }
}

void TokenSampler::sort_best(std::size_t count) {
  std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(count), candidates_.end(),
                    [](const Candidate& a, const Candidate& b) { return a.score != b.score ? a.score > b.score : a.id < b.id; });
}

double TokenSampler::total_weight() const {
  double total = 0;
  for (const Candidate& candidate : candidates_) total += weight(candidate.score);
  return total;
}

void TokenSampler::keep_top_k() {
  if (options_.top_k == 0 || options_.top_k >= candidates_.size()) return;
  const auto last = candidates_.begin() + static_cast<std::ptrdiff_t>(options_.top_k - 1);
  std::nth_element(candidates_.begin(), last, candidates_.end(),
                   [](const Candidate& a, const Candidate& b) { return a.score > b.score; });
  const float least = last->score;
  std::erase_if(candidates_, [least](const Candidate& candidate) { return candidate.score < least; });
}

// A token stays while those before it have not reached the sum; sorting stops there, for vocabularies are large.
void TokenSampler::keep_top_p() {
  if (options_.top_p >= 1.0f) return;
  const double wanted = double{options_.top_p} * total_weight();
  std::size_t sorted = 0, kept = 0;
  for (double before = 0; kept < candidates_.size() && before < wanted; ++kept) {
    if (kept == sorted) {
      sorted = std::min(candidates_.size(), std::max<std::size_t>(64, sorted * 8));
      sort_best(sorted);
    }
    before += weight(candidates_[kept].score);
  }
  candidates_.resize(kept);
}

void TokenSampler::keep_min_p() {
  if (options_.min_p == 0.0f) return;
  std::erase_if(candidates_, [&](const Candidate& candidate) { return weight(candidate.score) < double{options_.min_p}; });
}

std::uint32_t TokenSampler::draw() {
  // In a set order: the steps before leave what the library's selection makes of it.
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  const double high = rng_.next_u32(), low = rng_.next_u32();
  const double target = (high + low * 0x1p-32) * 0x1p-32 * total_weight();
  double sum = 0;
  for (const Candidate& candidate : candidates_) {
    sum += weight(candidate.score);
    if (target < sum) return candidate.id;
  }
  return candidates_.back().id;
}

}  // namespace nibble
