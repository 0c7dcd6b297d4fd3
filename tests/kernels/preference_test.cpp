#include "nibble/kernels/preference.h"

#include "tests/support/gpu_test.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace nibble::preference_test {
namespace {

// Pairs with the negative log-likelihoods of their labels.
struct Pairs {
  std::vector<double> loss;
  std::vector<std::uint32_t> sides = {0};
  std::vector<float> reference;
  PreferenceLoss kind = PreferenceLoss::dpo;
  double beta = 0.1, pair_factor = 0.25, token_factor = 0;

  std::uint32_t count() const { return static_cast<std::uint32_t>(sides.size() / 2); }
  void add_side(std::span<const float> losses) {
    loss.insert(loss.end(), losses.begin(), losses.end());
    sides.push_back(static_cast<std::uint32_t>(loss.size()));
    reference.push_back(0);
  }
  double sum(std::size_t side, const std::vector<double>& of) const {
    return std::accumulate(of.begin() + sides[side], of.begin() + sides[side + 1], 0.0);
  }
  double labels(std::size_t side) const { return sides[side + 1] - sides[side]; }
};

struct Reference {
  double loss, chosen_logps, rejected_logps, chosen_reward, rejected_reward;
  double slope;  // d(loss) / d(margin or log odds ratio), without sign
  double chosen_weight, rejected_weight;
};

// As docs/derivations.md has it, in double.
Reference reference_of(const Pairs& pairs, std::size_t pair, const std::vector<double>& losses) {
  const auto log_loss = [](double z) { return std::max(-z, 0.0) + std::log1p(std::exp(-std::fabs(z))); };
  const double c = -pairs.sum(2 * pair, losses), r = -pairs.sum(2 * pair + 1, losses);
  Reference result{};
  if (pairs.kind == PreferenceLoss::dpo) {
    result.chosen_logps = c;
    result.rejected_logps = r;
    result.chosen_reward = pairs.beta * (c - double{pairs.reference[2 * pair]});
    result.rejected_reward = pairs.beta * (r - double{pairs.reference[2 * pair + 1]});
    const double margin = result.chosen_reward - result.rejected_reward;
    result.loss = log_loss(margin);
    result.slope = 1 / (1 + std::exp(margin));
    result.chosen_weight = pairs.pair_factor * pairs.beta * result.slope;
    result.rejected_weight = -result.chosen_weight;
    return result;
  }
  const double mean_c = c / pairs.labels(2 * pair), mean_r = r / pairs.labels(2 * pair + 1);
  const double z = mean_c - mean_r - std::log(-std::expm1(mean_c)) + std::log(-std::expm1(mean_r));
  result.chosen_logps = mean_c;
  result.rejected_logps = mean_r;
  result.chosen_reward = pairs.beta * mean_c;
  result.rejected_reward = pairs.beta * mean_r;
  result.loss = pairs.beta * log_loss(z);
  result.slope = 1 / (1 + std::exp(z));
  const double slope = pairs.pair_factor * pairs.beta * result.slope;
  result.chosen_weight = pairs.token_factor + slope / (-std::expm1(mean_c) * pairs.labels(2 * pair));
  result.rejected_weight = -slope / (-std::expm1(mean_r) * pairs.labels(2 * pair + 1));
  return result;
}

double total_loss(const Pairs& pairs, const std::vector<double>& losses) {
  double total = 0;
  for (std::size_t pair = 0; pair < pairs.count(); ++pair) {
    total += pairs.pair_factor * reference_of(pairs, pair, losses).loss + pairs.token_factor * pairs.sum(2 * pair, losses);
  }
  return total;
}

// Answers of 1 to 300 labels, so that a side takes less or more than one round of a workgroup.
Pairs random_pairs(PreferenceLoss kind, std::uint32_t count, std::uint64_t seed) {
  Pairs pairs{.kind = kind};
  if (kind == PreferenceLoss::orpo) pairs.token_factor = 0.01;
  Rng rng(seed);
  for (std::uint32_t side = 0; side < 2 * count; ++side) {
    auto losses = test::random_values(1 + rng.below(side % 5 == 0 ? 300 : 30), seed + side + 1, 3.0f);
    for (float& loss : losses) loss = std::fabs(loss);
    pairs.add_side(losses);
    // Not far from the policy's, as training has it.
    pairs.reference.back() = static_cast<float>(-pairs.sum(side, pairs.loss)) + rng.uniform(-5.0f, 5.0f);
  }
  return pairs;
}

struct Output {
  std::vector<PreferenceStatistics> statistics;
  std::vector<float> weights;
};

Output run_pairs(const Pairs& pairs, bool with_weights = true) {
  const auto labels = static_cast<std::uint32_t>(pairs.loss.size());
  const std::vector<float> losses(pairs.loss.begin(), pairs.loss.end());
  const test::GuardedTensor statistics(DType::f32, {pairs.count(), preference_statistics}), weights(DType::f32, {labels});
  test::run(Preference{.kind = pairs.kind, .loss = test::upload(losses, {labels}), .sides = test::upload_u32(pairs.sides),
                       .reference = test::upload(pairs.reference, {2 * pairs.count()}), .statistics = statistics.tensor(),
                       .weights = with_weights ? weights.tensor() : Tensor{}, .beta = static_cast<float>(pairs.beta),
                       .pair_factor = static_cast<float>(pairs.pair_factor),
                       .token_factor = static_cast<float>(pairs.token_factor)});
  statistics.expect_guards_intact();
  weights.expect_guards_intact();
  return {test::device().read<PreferenceStatistics>(statistics.tensor()), test::download(weights.tensor())};
}

void expect_reference(const Pairs& pairs, const Output& output) {
  for (std::size_t pair = 0; pair < pairs.count(); ++pair) {
    SCOPED_TRACE("pair " + std::to_string(pair));
    const Reference expected = reference_of(pairs, pair, pairs.loss);
    const PreferenceStatistics& found = output.statistics[pair];
    // A lane adds at most 40 labels, and 8 lanes or a tree of 32 follow; all terms have one sign.
    const double sum = 64 * 0x1p-24;
    const double logps = sum * (std::fabs(expected.chosen_logps) + std::fabs(expected.rejected_logps));
    EXPECT_NEAR(found.chosen_nll, pairs.sum(2 * pair, pairs.loss), sum * pairs.sum(2 * pair, pairs.loss));
    EXPECT_NEAR(found.chosen_logps, expected.chosen_logps, logps);
    EXPECT_NEAR(found.rejected_logps, expected.rejected_logps, logps);
    EXPECT_NEAR(found.chosen_reward, expected.chosen_reward, 4 * pairs.beta * logps);
    EXPECT_NEAR(found.rejected_reward, expected.rejected_reward, 4 * pairs.beta * logps);
    EXPECT_EQ(found.preferred, found.chosen_reward > found.rejected_reward ? 1.0f : 0.0f);
    // The error of what the sigmoid is taken of: ORPO's logarithms of 1 - e^x err by 2^-21 and by what x errs over 1 - e^x.
    const bool orpo = pairs.kind == PreferenceLoss::orpo;
    const double z = orpo ? 4 * (logps + 0x1p-21) + logps / -std::expm1(std::max(expected.chosen_logps, expected.rejected_logps))
                          : 4 * pairs.beta * logps;
    EXPECT_NEAR(found.loss, expected.loss, (orpo ? pairs.beta : 1.0) * (z + 0x1p-21));
    for (std::size_t i = pairs.sides[2 * pair]; i < pairs.sides[2 * pair + 2]; ++i) {
      const double weight = i < pairs.sides[2 * pair + 1] ? expected.chosen_weight : expected.rejected_weight;
      ASSERT_NEAR(output.weights[i], weight, std::fabs(weight) * (z + 32 * 0x1p-23)) << i;
    }
  }
}

TEST(Preference, EqualsTheReference) {
  for (const auto kind : {PreferenceLoss::dpo, PreferenceLoss::orpo}) {
    for (const std::uint32_t count : {1u, 3u, 40u}) {
      SCOPED_TRACE(std::string(name_of(kind)) + " " + std::to_string(count));
      const Pairs pairs = random_pairs(kind, count, count);
      const Output output = run_pairs(pairs), statistics_alone = run_pairs(pairs, false);
      expect_reference(pairs, output);
      for (std::size_t i = 0; i < count; ++i) {
        EXPECT_EQ(statistics_alone.statistics[i].chosen_logps, output.statistics[i].chosen_logps);
        EXPECT_NEAR(statistics_alone.statistics[i].loss, output.statistics[i].loss, 1e-6);
      }
    }
  }
}

TEST(Preference, ReferenceWeightsEqualFiniteDifferences) {
  for (const auto kind : {PreferenceLoss::dpo, PreferenceLoss::orpo}) {
    const Pairs pairs = random_pairs(kind, 2, 7);
    std::vector<std::size_t> indices(pairs.loss.size());
    std::iota(indices.begin(), indices.end(), 0u);
    const auto slopes = test::finite_differences([&](const std::vector<double>& x) { return total_loss(pairs, x); }, pairs.loss,
                                                 indices);
    for (std::size_t i = 0; i < slopes.size(); ++i) {
      const std::size_t pair = i < pairs.sides[2] ? 0 : 1;
      const Reference expected = reference_of(pairs, pair, pairs.loss);
      EXPECT_NEAR(slopes[i], i < pairs.sides[2 * pair + 1] ? expected.chosen_weight : expected.rejected_weight, 1e-8) << i;
    }
  }
}

TEST(Preference, WithoutAChangeDposLossIsLogTwo) {
  Pairs pairs = random_pairs(PreferenceLoss::dpo, 3, 5);
  const Output before = run_pairs(pairs);
  for (std::size_t pair = 0; pair < 3; ++pair) {
    pairs.reference[2 * pair] = before.statistics[pair].chosen_logps;
    pairs.reference[2 * pair + 1] = before.statistics[pair].rejected_logps;
  }
  for (const PreferenceStatistics& pair : run_pairs(pairs).statistics) {
    EXPECT_EQ(pair.chosen_reward, 0.0f);
    EXPECT_EQ(pair.rejected_reward, 0.0f);
    EXPECT_NEAR(pair.loss, std::log(2.0), 0x1p-22);
    EXPECT_EQ(pair.preferred, 0.0f);  // equal is not preferred
  }
}

TEST(Preference, FarMarginsStayFinite) {
  Pairs pairs{.beta = 0.5};
  for (const float loss : {1.0f, 5000.0f, 5000.0f, 1.0f}) pairs.add_side(std::vector<float>{loss});
  const Output output = run_pairs(pairs);
  EXPECT_NEAR(output.statistics[0].loss, 0.0, 1e-30);
  EXPECT_NEAR(output.statistics[1].loss, 0.5 * 4999, 1e-3);
  EXPECT_NEAR(output.weights[0], 0.0, 1e-30);
  EXPECT_NEAR(output.weights[2], 0.25 * 0.5, 1e-7);
  EXPECT_NEAR(output.weights[3], -0.25 * 0.5, 1e-7);
}

// 1 - e^x is nothing where each label is certain; its least value stands in for it.
TEST(Preference, CertainAnswersStayFinite) {
  Pairs pairs{.kind = PreferenceLoss::orpo, .token_factor = 0.5};
  for (const float loss : {0.0f, 2.0f, 2.0f, 0.0f}) pairs.add_side(std::vector<float>(3, loss));
  const Output output = run_pairs(pairs);
  for (const PreferenceStatistics& pair : output.statistics) EXPECT_TRUE(std::isfinite(pair.loss));
  for (const float weight : output.weights) EXPECT_TRUE(std::isfinite(weight)) << weight;
  EXPECT_EQ(output.statistics[0].preferred, 1.0f);
  EXPECT_EQ(output.statistics[1].preferred, 0.0f);
  EXPECT_LT(output.weights[9], -1e3f);  // a certain rejected answer is pushed away the harder
}

TEST(Preference, WhatIsNoNumberIsSeen) {
  for (const auto kind : {PreferenceLoss::dpo, PreferenceLoss::orpo}) {
    for (const float bad : {NAN, INFINITY}) {
      Pairs pairs{.kind = kind};
      for (const float loss : {1.0f, 2.0f, 3.0f, bad}) pairs.add_side(std::vector<float>{loss, 1.0f});
      const Output output = run_pairs(pairs);
      EXPECT_TRUE(std::isfinite(output.statistics[0].loss));
      EXPECT_FALSE(std::isfinite(output.statistics[1].rejected_logps)) << output.statistics[1].rejected_logps;
    }
  }
}

TEST(Preference, MorePairsThanAGridsSide) {
  const std::uint32_t count = 66000;
  Pairs pairs;
  for (std::uint32_t side = 0; side < 2 * count; ++side) pairs.add_side(std::vector<float>{side % 2 == 0 ? 1.0f : 3.0f});
  const Output output = run_pairs(pairs);
  const double loss = std::log1p(std::exp(-0.2));
  EXPECT_NEAR(output.statistics[count - 1].loss, loss, 1e-6);
  EXPECT_LT(output.weights[2 * count - 1], 0.0f);
}

TEST(Preference, TotalsAreSumsOfTheColumns) {
  const auto values = test::random_values(5 * preference_statistics, 3);
  const auto middle = std::span(values).subspan(preference_statistics, 2 * preference_statistics);
  const test::GuardedTensor total(DType::f32, {preference_statistics});
  test::run(PreferenceTotal{.statistics = test::upload(values, {5, preference_statistics}), .total = total.tensor()});
  test::run(PreferenceTotal{.statistics = test::upload(middle, {2, preference_statistics}), .total = total.tensor(),
                            .accumulate = true});
  total.expect_guards_intact();
  const auto found = test::download(total.tensor());
  for (std::size_t column = 0; column < preference_statistics; ++column) {
    double sum = 0;
    for (const std::size_t row : {0, 1, 2, 3, 4, 1, 2}) sum += double{values[row * preference_statistics + column]};
    EXPECT_NEAR(found[column], sum, 7 * 7 * 0x1p-24);
  }
}

}  // namespace
}  // namespace nibble::preference_test
