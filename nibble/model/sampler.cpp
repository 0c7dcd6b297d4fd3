#include "nibble/model/sampler.h"

#include "nibble/base/error.h"
#include "nibble/base/fast_exp.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

namespace nibble {
namespace {

// Of a score that is 0 for the most likely token.
double weight(float score) { return fast_exp(score); }

float score_of(float logit, float largest, float temperature) { return (logit - largest) / temperature; }

// Eight sums, so that compilers make vectors of them.
double sum_of_weights(std::span<const float> logits, float largest, float temperature) {
  constexpr std::size_t lanes = 8;
  std::array<float, ScoreBlocks::block> weights{};
  for (std::size_t i = 0; i < logits.size(); ++i) weights[i] = fast_exp(score_of(logits[i], largest, temperature));
  std::array<double, lanes> sums{};
  for (std::size_t i = 0; i < weights.size(); i += lanes) {
    for (std::size_t j = 0; j < lanes; ++j) sums[j] += weights[i + j];
  }
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

}  // namespace

bool TokenSampler::better(const Candidate& a, const Candidate& b) { return a.score != b.score ? a.score > b.score : a.id < b.id; }

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
  blocks_.read(options_.repetition_penalty == 1.0f ? logits : penalised(logits, text));
  largest_ = blocks_.largest();
  if (options_.temperature == 0.0f) return blocks_.best();
  const bool by_k = options_.top_k > 0 && options_.top_k < logits.size(), by_p = options_.top_p < 1.0f;
  if (!by_k && !by_p && options_.min_p == 0.0f) return draw_from_all();
  if (by_k) {
    take_top_k();
  } else if (by_p) {
    take_top_p();
  } else {
    take_from(std::log(options_.min_p) - 1e-3f);  // a little more than min-p leaves
  }
  return draw_from_few(by_k && by_p);
}

std::optional<ForeseenTokens> TokenSampler::foreseen(std::uint32_t best) const {
  if (options_.repetition_penalty != 1.0f || !looks_at_few(best)) return {};
  Rng rng = rng_;
  const auto draw = [&rng] { return static_cast<float>(draw_share(rng)); };
  const float first = draw();
  return ForeseenTokens{{options_.temperature, options_.top_k, options_.top_p, options_.min_p}, {first, draw()}};
}

// What is not among the best is below their bound, and a penalty brings nothing above it.
std::optional<std::uint32_t> TokenSampler::next(const BestOfRow& best, std::span<const std::uint32_t> text) {
  if (best.tokens.empty() || options_.repetition_penalty < 1.0f || !looks_at_few(static_cast<std::uint32_t>(best.tokens.size()))) return {};
  if (options_.repetition_penalty != 1.0f) see(text, best.tokens.back().id + 1);
  candidates_.clear();
  for (const auto& [id, logit] : best.tokens) {
    candidates_.push_back({options_.repetition_penalty != 1.0f && seen_[id] ? penalised(logit) : logit, id});
  }
  const auto first = std::min_element(candidates_.begin(), candidates_.end(), better);
  if (first->score < best.bound) return {};
  if (options_.temperature == 0.0f) return first->id;
  largest_ = first->score;
  for (Candidate& candidate : candidates_) candidate.score = score(candidate.score);
  if (keep_top_k() <= score(std::nextafter(best.bound, -std::numeric_limits<float>::infinity()))) return {};
  return draw_from_few(options_.top_p < 1.0f);
}

std::uint32_t TokenSampler::draw_from_few(bool by_p) {
  if (by_p) keep_reaching(double{options_.top_p} * total_weight());
  keep_min_p();
  return draw();
}

float TokenSampler::penalised(float logit) const { return logit < 0 ? logit * options_.repetition_penalty : logit / options_.repetition_penalty; }

void TokenSampler::see(std::span<const std::uint32_t> text, std::size_t ids) {
  seen_.assign(ids, false);
  for (const std::uint32_t token : text) {
    if (token < ids) seen_[token] = true;
  }
}

std::span<const float> TokenSampler::penalised(std::span<const float> logits, std::span<const std::uint32_t> text) {
  see(text, logits.size());
  penalised_.assign(logits.begin(), logits.end());
  for (std::size_t id = 0; id < logits.size(); ++id) {
    if (seen_[id]) penalised_[id] = penalised(penalised_[id]);
  }
  return penalised_;
}

float TokenSampler::score(float logit) const { return score_of(logit, largest_, options_.temperature); }

void TokenSampler::take_from(float least) {
  candidates_.clear();
  blocks_.each_from(least, [this](float logit) { return score(logit); }, [this](std::uint32_t id, float score) { candidates_.push_back({score, id}); });
}

void TokenSampler::take_top_k() {
  take_from(score(blocks_.reached_by(options_.top_k)));
  keep_top_k();
}

float TokenSampler::keep_top_k() {
  selected_ = candidates_;
  const auto last = selected_.begin() + static_cast<std::ptrdiff_t>(options_.top_k - 1);
  std::nth_element(selected_.begin(), last, selected_.end(), better);
  const float least = last->score;
  std::erase_if(candidates_, [least](const Candidate& candidate) { return candidate.score < least; });
  return least;
}

// A token stays while those before it have not reached the sum. The place of the last is found by halves: nothing is sorted.
bool TokenSampler::keep_reaching(double wanted) {
  selected_ = candidates_;
  auto begin = selected_.begin(), end = selected_.end();
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, better);
    const double sum = std::accumulate(begin, middle, 0.0, [](double before, const Candidate& candidate) { return before + weight(candidate.score); });
    if (sum < wanted) {
      wanted -= sum;
      begin = middle;
    } else {
      end = middle;
    }
  }
  const Candidate last = *begin;
  std::erase_if(candidates_, [&last](const Candidate& candidate) { return better(last, candidate); });
  return weight(last.score) >= wanted;
}

// A few of the best mostly reach the sum.
void TokenSampler::take_top_p() {
  constexpr std::size_t few = 64;
  const double wanted = double{options_.top_p} * weigh_blocks();
  take_from(score(blocks_.reached_by(few)));
  if (keep_reaching(wanted)) return;
  take_from(-std::numeric_limits<float>::infinity());
  keep_reaching(wanted);
}

void TokenSampler::keep_min_p() {
  if (options_.min_p == 0.0f) return;
  std::erase_if(candidates_, [&](const Candidate& candidate) { return weight(candidate.score) < double{options_.min_p}; });
}

double TokenSampler::total_weight() const {
  double total = 0;
  for (const Candidate& candidate : candidates_) total += weight(candidate.score);
  return total;
}

double TokenSampler::weigh_blocks() {
  block_weights_.resize(blocks_.blocks());
  double total = 0;
  for (std::size_t b = 0; b < blocks_.blocks(); ++b) {
    block_weights_[b] = sum_of_weights(blocks_.of(b), largest_, options_.temperature);
    total += block_weights_[b];
  }
  return total;
}

double TokenSampler::draw_share(Rng& rng) {
  const double high = rng.next_u32(), low = rng.next_u32();
  return (high + low * 0x1p-32) * 0x1p-32;
}

std::uint32_t TokenSampler::draw() {
  const double target = random_place(total_weight());
  double sum = 0;
  for (const Candidate& candidate : candidates_) {
    sum += weight(candidate.score);
    if (target < sum) return candidate.id;
  }
  return candidates_.back().id;
}

std::uint32_t TokenSampler::draw_from_all() {
  double left = random_place(weigh_blocks());
  std::size_t b = 0;
  while (b + 1 < blocks_.blocks() && left >= block_weights_[b]) left -= block_weights_[b++];
  const std::span<const float> logits = blocks_.of(b);
  std::size_t i = 0;
  for (double sum = weight(score(logits[0])); i + 1 < logits.size() && left >= sum; sum += weight(score(logits[i]))) ++i;
  return static_cast<std::uint32_t>(b * ScoreBlocks::block + i);
}

}  // namespace nibble
