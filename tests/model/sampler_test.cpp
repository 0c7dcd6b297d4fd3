#include "nibble/model/sampler.h"

#include "nibble/base/error.h"
#include "tests/support/files.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <initializer_list>
#include <limits>
#include <map>
#include <numeric>

namespace nibble::sampler_test {
namespace {

// Logits whose softmax at temperature 1 is `probabilities`, up to a constant.
std::vector<float> logits_of(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)) + 3.0f);
  return logits;
}

std::map<std::uint32_t, double> frequencies(const SamplingOptions& options, const std::vector<float>& logits,
                                            std::size_t draws) {
  TokenSampler sampler(options);
  std::map<std::uint32_t, double> result;
  for (std::size_t i = 0; i < draws; ++i) result[sampler.next(logits, {})] += 1;
  for (auto& [id, count] : result) count /= static_cast<double>(draws);
  return result;
}

// Each frequency within five standard deviations of its probability: a chance of less than 1e-6 that a right sampler fails,
// and none with the fixed seed.
void expect_distribution(const SamplingOptions& options, const std::vector<float>& logits,
                         const std::map<std::uint32_t, double>& expected) {
  constexpr std::size_t draws = 20000;
  const auto found = frequencies(options, logits, draws);
  for (const auto& [id, frequency] : found) {
    ASSERT_TRUE(expected.contains(id)) << "token " << id << " was cut";
    const double p = expected.at(id);
    EXPECT_NEAR(frequency, p, 5 * std::sqrt(p * (1 - p) / draws)) << "token " << id;
  }
  EXPECT_EQ(found.size(), expected.size());
}

const std::vector<double> five = {0.1, 0.4, 0.05, 0.25, 0.2};

TEST(TokenSampler, GreedyTakesTheLargestAndAmongEqualsTheFirst) {
  TokenSampler sampler({});
  EXPECT_EQ(sampler.next(std::vector<float>{1, 5, 5, -2}, {}), 1u);
  EXPECT_EQ(sampler.next(std::vector<float>{-7}, {}), 0u);
  EXPECT_EQ(sampler.next(std::vector<float>(1000, 0.0f), {}), 0u);
}

TEST(TokenSampler, DrawsFromTheSoftmax) {
  expect_distribution({.temperature = 1}, logits_of(five), {{0, 0.1}, {1, 0.4}, {2, 0.05}, {3, 0.25}, {4, 0.2}});
}

TEST(TokenSampler, TemperatureDividesTheLogits) {
  // p^(1/T) with T = 0.5: squares of 0.5, 0.3, 0.2.
  const double sum = 0.25 + 0.09 + 0.04;
  expect_distribution({.temperature = 0.5f}, logits_of({0.5, 0.3, 0.2}),
                      {{0, 0.25 / sum}, {1, 0.09 / sum}, {2, 0.04 / sum}});
}

TEST(TokenSampler, TopKKeepsTheBestAndTheirEquals) {
  expect_distribution({.temperature = 1, .top_k = 2}, logits_of(five), {{1, 0.4 / 0.65}, {3, 0.25 / 0.65}});
  // As transformers has it, whatever equals the k-th stays.
  expect_distribution({.temperature = 1, .top_k = 2}, {1, 2, 1, 1}, frequencies({.temperature = 1}, {1, 2, 1, 1}, 20000));
  expect_distribution({.temperature = 1, .top_k = 99}, {1, 1}, {{0, 0.5}, {1, 0.5}});
}

TEST(TokenSampler, TopPKeepsTheFewestThatReachTheSum) {
  expect_distribution({.temperature = 1, .top_p = 0.6f}, logits_of(five), {{1, 0.4 / 0.65}, {3, 0.25 / 0.65}});
  expect_distribution({.temperature = 1, .top_p = 0.66f}, logits_of(five),
                      {{1, 0.4 / 0.85}, {3, 0.25 / 0.85}, {4, 0.2 / 0.85}});
  expect_distribution({.temperature = 1, .top_p = 1e-6f}, logits_of(five), {{1, 1.0}});
}

TEST(TokenSampler, TopPCutsEqualsByTheirIds) {
  const std::vector<float> equal(1000, 0.5f);
  const auto found = frequencies({.temperature = 1, .top_p = 0.25f}, equal, 5000);
  EXPECT_EQ(found.size(), 250u);
  EXPECT_EQ(found.rbegin()->first, 249u);
}

TEST(TokenSampler, TopPLooksAtWhatTopKHasLeft) {
  // Of 0.4 and 0.25 the first alone has 0.615 of the rest.
  expect_distribution({.temperature = 1, .top_k = 2, .top_p = 0.6f}, logits_of(five), {{1, 1.0}});
}

TEST(TokenSampler, MinPIsAShareOfTheBest) {
  expect_distribution({.temperature = 1, .min_p = 0.45f}, logits_of(five),
                      {{1, 0.4 / 0.85}, {3, 0.25 / 0.85}, {4, 0.2 / 0.85}});
  expect_distribution({.temperature = 1, .min_p = 1}, {2, 7, 7}, {{1, 0.5}, {2, 0.5}});
}

TEST(TokenSampler, PenaltyDividesPositiveAndMultipliesNegativeScoresOnce) {
  TokenSampler sampler({.repetition_penalty = 2});
  const std::vector<std::uint32_t> twice = {0, 0, 7};  // 7 is beyond the logits
  EXPECT_EQ(sampler.next(std::vector<float>{4, 1.5f, 1}, twice), 0u);  // 2, once and not twice
  EXPECT_EQ(sampler.next(std::vector<float>{4, 2.5f, 1}, twice), 1u);
  EXPECT_EQ(sampler.next(std::vector<float>{-1, -1.5f}, twice), 1u);  // -2
}

TEST(TokenSampler, TheSeedDecides) {
  std::vector<float> logits(500);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i % 7) * 0.1f;
  const auto text = [&](std::uint64_t seed) {
    TokenSampler sampler({.temperature = 1, .top_p = 0.9f, .seed = seed});
    std::vector<std::uint32_t> ids;
    for (int i = 0; i < 20; ++i) ids.push_back(sampler.next(logits, ids));
    return ids;
  };
  EXPECT_EQ(text(3), text(3));
  EXPECT_NE(text(3), text(4));
}

TEST(TokenSampler, ExtremeScoresDoNotOverflow) {
  TokenSampler hot({.temperature = 1e30f}), cold({.temperature = 1e-30f, .top_p = 0.5f});
  EXPECT_LT(hot.next(std::vector<float>{3e38f, -3e38f}, {}), 2u);
  EXPECT_EQ(cold.next(std::vector<float>{1, 3e38f, 2}, {}), 1u);
  EXPECT_EQ(cold.next(std::vector<float>{1, 3, 2}, {}), 1u);
}

// What SamplingOptions say, word by word, without a look at speed.
std::uint32_t drawn_by_definition(const SamplingOptions& o, std::span<const float> logits, Rng& rng) {
  struct Token {
    double weight;
    float score;
    std::uint32_t id;
  };
  const float largest = *std::max_element(logits.begin(), logits.end());
  std::vector<Token> tokens;
  for (std::uint32_t id = 0; id < logits.size(); ++id) {
    const float score = (logits[id] - largest) / o.temperature;
    tokens.push_back({std::exp(double{score}), score, id});
  }
  std::stable_sort(tokens.begin(), tokens.end(), [](const Token& a, const Token& b) { return a.score > b.score; });
  if (o.top_k > 0 && o.top_k < tokens.size()) {
    const float least = tokens[o.top_k - 1].score;
    std::erase_if(tokens, [&](const Token& t) { return t.score < least; });
  }
  const auto total = [&] { return std::accumulate(tokens.begin(), tokens.end(), 0.0, [](double sum, const Token& t) { return sum + t.weight; }); };
  const double wanted = double{o.top_p} * total();
  std::size_t kept = 0;
  for (double before = 0; kept < tokens.size() && (o.top_p == 1.0f || before < wanted); ++kept) before += tokens[kept].weight;
  tokens.resize(kept);
  std::erase_if(tokens, [&](const Token& t) { return t.weight < double{o.min_p}; });
  std::sort(tokens.begin(), tokens.end(), [](const Token& a, const Token& b) { return a.id < b.id; });
  const double high = rng.next_u32(), low = rng.next_u32(), target = (high + low * 0x1p-32) * 0x1p-32 * total();
  double sum = 0;
  for (const Token& t : tokens) {
    if (target < (sum += t.weight)) return t.id;
  }
  return tokens.back().id;
}

// Sizes around whole blocks; scores of a normal distribution, and of a few values alone, so that many are equal.
TEST(TokenSampler, DrawsWhatTheDefinitionDraws) {
  Rng made(5);
  for (const std::size_t size : {1u, 255u, 256u, 257u, 3000u, 40000u}) {
    for (const bool equals : {false, true}) {
      std::vector<float> logits(size);
      for (float& logit : logits) logit = equals ? static_cast<float>(made.below(9)) : 3 * made.normal();
      for (const SamplingOptions& base : std::initializer_list<SamplingOptions>{
               {.temperature = 1}, {.temperature = 0.6f, .top_k = 20, .top_p = 0.95f}, {.temperature = 1, .top_k = 1}, {.temperature = 2, .top_k = 300, .min_p = 0.1f},
               {.temperature = 0.7f, .top_p = 0.9f}, {.temperature = 1.5f, .top_p = 0.999f}, {.temperature = 1, .min_p = 0.05f}, {.temperature = 1, .top_p = 0.5f, .min_p = 0.3f},
               {.temperature = 1e30f, .top_k = 3}}) {
        SamplingOptions options = base;
        options.seed = size;
        TokenSampler sampler(options);
        Rng rng(options.seed);
        for (int draw = 0; draw < 6; ++draw) {
          EXPECT_EQ(sampler.next(logits, {}), drawn_by_definition(options, logits, rng))
              << size << " scores, equals " << equals << ", temperature " << options.temperature << ", top-k " << options.top_k << ", top-p " << options.top_p;
        }
      }
    }
  }
}

// As the GPU lists them: all from some bound on.
BestOfRow best_from(std::span<const float> logits, std::size_t count) {
  std::vector<float> sorted(logits.begin(), logits.end());
  std::sort(sorted.begin(), sorted.end(), std::greater<float>());
  BestOfRow best{.tokens = {}, .bound = sorted[count - 1]};
  for (std::uint32_t id = 0; id < logits.size(); ++id) {
    if (logits[id] >= best.bound) best.tokens.push_back({id, logits[id]});
  }
  return best;
}

TEST(TokenSampler, TheBestAloneGiveTheSameTokenOrNone) {
  Rng made(8);
  std::size_t given = 0, refused = 0;
  for (int round = 0; round < 40; ++round) {
    std::vector<float> logits(2000);
    for (float& logit : logits) logit = round % 3 == 0 ? static_cast<float>(made.below(12)) : 3 * made.normal();
    std::vector<std::uint32_t> text(300);
    for (std::uint32_t& id : text) id = made.below(2000);
    const BestOfRow best = best_from(logits, 30);
    for (SamplingOptions options : std::initializer_list<SamplingOptions>{
             {}, {.repetition_penalty = 1.5f}, {.repetition_penalty = 0.5f}, {.temperature = 1, .top_k = 20, .top_p = 0.9f}, {.temperature = 1, .top_k = 30, .repetition_penalty = 1.1f},
             {.temperature = 1, .top_k = 25, .min_p = 0.1f, .repetition_penalty = 3}, {.temperature = 1e-8f, .top_k = 5}, {.temperature = 1e9f, .top_k = 20}, {.temperature = 1}}) {
      options.seed = static_cast<std::uint64_t>(round);
      TokenSampler few(options), all(options);
      for (int draw = 0; draw < 3; ++draw) {
        const auto token = few.next(best, text);
        const std::uint32_t expected = all.next(logits, text);
        if (token) {
          EXPECT_EQ(*token, expected) << "temperature " << options.temperature << ", top-k " << options.top_k << ", penalty " << options.repetition_penalty;
        } else {
          EXPECT_EQ(few.next(logits, text), expected) << "something was drawn in vain";
        }
        (token ? given : refused) += 1;
      }
    }
  }
  EXPECT_GT(given, 500u);
  EXPECT_GT(refused, 200u);
}

TEST(TokenSampler, FindsTheBestWhereverItIs) {
  TokenSampler sampler({});
  for (const std::size_t size : {1u, 256u, 257u, 1000u}) {
    std::vector<float> logits(size, -4.0f);
    for (std::size_t at = 0; at < size; ++at) {
      logits[at] = -3.5f;
      ASSERT_EQ(sampler.next(logits, {}), at) << "of " << size;
      logits[at] = -4.0f;
    }
  }
  EXPECT_EQ(sampler.next(std::vector<float>{-0.0f, 0.0f}, {}), 0u);
}

TEST(TokenSampler, ForeseesItsDraws) {
  const std::vector<float> logits = logits_of(five);
  TokenSampler sampler({.temperature = 1, .top_k = 3, .seed = 9});
  const double total = 0.4 + 0.25 + 0.2;
  for (int i = 0; i < 50; ++i) {
    const auto [choice, draws] = sampler.foreseen(64).value();
    EXPECT_EQ(choice, (SamplingRule{.temperature = 1, .top_k = 3}));
    const double place = double{draws[0]} * total;
    EXPECT_EQ(sampler.next(logits, {}), place < 0.4 ? 1u : place < 0.4 + 0.25 ? 3u : 4u) << i;
    EXPECT_EQ(sampler.foreseen(64)->draws[0], draws[1]) << i;
  }
  EXPECT_TRUE(TokenSampler({}).foreseen(1).has_value());
  EXPECT_FALSE(TokenSampler({.repetition_penalty = 1.1f}).foreseen(64).has_value());
  EXPECT_FALSE(TokenSampler({.temperature = 1}).foreseen(64).has_value());
  EXPECT_FALSE(TokenSampler({.temperature = 1, .top_k = 65}).foreseen(64).has_value());
}

TEST(TokenSampler, NamesTheTokenThatIsNoNumberInAnyBlock) {
  TokenSampler sampler({});
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> logits(1000, 1.0f);
    logits[777] = bad;
    test::expect_error<Diverged>([&] { sampler.next(logits, {}); }, "token 777");
  }
}

TEST(TokenSampler, RefusesWhatIsOutOfRange) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const SamplingOptions& options :
       {SamplingOptions{.temperature = -1}, SamplingOptions{.temperature = nan}, SamplingOptions{.top_p = 0},
        SamplingOptions{.top_p = 1.1f}, SamplingOptions{.min_p = -0.1f}, SamplingOptions{.min_p = 2},
        SamplingOptions{.repetition_penalty = 0}, SamplingOptions{.repetition_penalty = nan}}) {
    EXPECT_THROW(TokenSampler{options}, UsageError);
  }
  TokenSampler sampler({});
  test::expect_error<Diverged>([&] { sampler.next(std::vector<float>{0, nan}, {}); }, "token 1");
  EXPECT_THROW(sampler.next(std::vector<float>{}, {}), Error);
}

}  // namespace
}  // namespace nibble::sampler_test
