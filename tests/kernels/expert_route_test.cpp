#include "nibble/kernels/expert_route.h"

#include "nibble/base/error.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace nibble::expert_route_test {
namespace {

using test::GuardedTensor;

struct Case {
  std::uint32_t tokens, experts, chosen;
  bool normalised;
};

// As many experts as one, fewer than lanes, more, and all chosen.
const Case cases[] = {{1, 1, 1, true}, {3, 5, 2, true}, {70, 8, 2, false}, {9, 128, 8, true}, {4, 130, 7, false}, {5, 6, 6, true}, {2, 1000, 3, false}};

struct Route {
  std::vector<std::uint32_t> expert;
  std::vector<double> weight;
};

std::vector<double> softmax(std::span<const double> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  std::vector<double> p;
  for (const double logit : logits) p.push_back(std::exp(logit - largest));
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= sum;
  return p;
}

// Of one token, with the experts given where they are to stay.
Route reference(std::span<const double> logits, std::uint32_t chosen, bool normalised, std::vector<std::uint32_t> expert = {}) {
  const auto p = softmax(logits);
  if (expert.empty()) {
    expert.resize(p.size());
    std::iota(expert.begin(), expert.end(), 0u);
    std::stable_sort(expert.begin(), expert.end(), [&](auto a, auto b) { return p[a] > p[b]; });
    expert.resize(chosen);
  }
  double sum = 0;
  for (const auto e : expert) sum += p[e];
  Route route{expert, {}};
  for (const auto e : expert) route.weight.push_back(normalised ? p[e] / sum : p[e]);
  return route;
}

std::vector<double> row_of(const std::vector<float>& values, std::size_t row, std::size_t columns) {
  const auto begin = values.begin() + static_cast<std::ptrdiff_t>(row * columns);
  return {begin, begin + static_cast<std::ptrdiff_t>(columns)};
}

Route run_forward(const Case& c, const std::vector<float>& logits) {
  const GuardedTensor expert(DType::u32, {c.tokens, c.chosen}), weight(DType::f32, {c.tokens, c.chosen});
  test::run(ExpertRoute{.logits = test::upload(logits, {c.tokens, c.experts}), .normalised = c.normalised, .expert = expert.tensor(),
                        .weight = weight.tensor()});
  expert.expect_guards_intact();
  weight.expect_guards_intact();
  const auto weights = test::download(weight.tensor());
  return {test::device().read<std::uint32_t>(expert.tensor()), {weights.begin(), weights.end()}};
}

// f32 logits of magnitude 6 and exponentials of a few units in the last place.
constexpr double allowed = 1e-5;

TEST(ExpertRoute, ChoosesTheLargest) {
  for (const Case& c : cases) {
    const auto logits = test::random_values(std::size_t{c.tokens} * c.experts, c.experts, 6.0f);
    const Route got = run_forward(c, logits);
    for (std::uint32_t t = 0; t < c.tokens; ++t) {
      const Route expected = reference(row_of(logits, t, c.experts), c.chosen, c.normalised);
      for (std::uint32_t j = 0; j < c.chosen; ++j) {
        EXPECT_EQ(got.expert[t * c.chosen + j], expected.expert[j]) << c.experts << " " << t << " " << j;
        EXPECT_NEAR(got.weight[t * c.chosen + j] / expected.weight[j], 1, allowed) << c.experts << " " << t << " " << j;
      }
    }
  }
}

TEST(ExpertRoute, OfEqualOnesTheFirst) {
  const Case c{.tokens = 3, .experts = 9, .chosen = 4, .normalised = true};
  // All alike; two alike at the end; magnitudes whose exponentials are zero but for one.
  const std::vector<float> logits = {1, 1, 1, 1, 1, 1, 1, 1, 1,    0, 1, 2, 3, 4, 5, 6, 7, 7,    -1e4f, -1e4f, 1e4f, -1e4f, -1e4f, -1e4f, -1e4f, -1e4f, -1e4f};
  const Route got = run_forward(c, logits);
  EXPECT_EQ(got.expert, (std::vector<std::uint32_t>{0, 1, 2, 3, 7, 8, 6, 5, 2, 0, 1, 3}));
  EXPECT_EQ(got.weight[0], 0.25);
  EXPECT_EQ(got.weight[8], 1.0);
  EXPECT_EQ(got.weight[9], 0.0);
}

TEST(ExpertRoute, BackwardEqualsFiniteDifferences) {
  for (const Case& c : cases) {
    const auto logits = test::random_values(std::size_t{c.tokens} * c.experts, c.experts + 1, 3.0f);
    const auto d_weight = test::random_values(std::size_t{c.tokens} * c.chosen, 4);
    const Route forward = run_forward(c, logits);
    const std::vector<float> weights(forward.weight.begin(), forward.weight.end());
    const GuardedTensor d_logits(DType::f32, {c.tokens, c.experts});
    test::run(ExpertRouteBackward{.logits = test::upload(logits, {c.tokens, c.experts}), .normalised = c.normalised,
                                  .expert = test::upload_u32(forward.expert).view({c.tokens, c.chosen}),
                                  .weight = test::upload(weights, {c.tokens, c.chosen}),
                                  .d_weight = test::upload(d_weight, {c.tokens, c.chosen}), .d_logits = d_logits.tensor()});
    d_logits.expect_guards_intact();
    const auto got = test::download(d_logits.tensor());
    for (std::uint32_t t = 0; t < std::min(c.tokens, 5u); ++t) {
      const auto begin = forward.expert.begin() + t * c.chosen;
      const std::vector<std::uint32_t> expert(begin, begin + c.chosen);
      const auto loss = [&](const std::vector<double>& x) {
        const Route route = reference(x, c.chosen, c.normalised, expert);
        double sum = 0;
        for (std::uint32_t j = 0; j < c.chosen; ++j) sum += route.weight[j] * d_weight[t * c.chosen + j];
        return sum;
      };
      std::vector<std::size_t> indices(c.experts);
      std::iota(indices.begin(), indices.end(), std::size_t{0});
      const auto slopes = test::finite_differences(loss, row_of(logits, t, c.experts), indices);
      for (std::uint32_t e = 0; e < c.experts; ++e) EXPECT_NEAR(got[t * c.experts + e], slopes[e], 1e-6) << c.experts << " " << t << " " << e;
    }
  }
}

TEST(ExpertRoute, RefusesMoreThanThereAre) {
  const auto logits = test::upload(test::random_values(6, 1), {2, 3});
  const auto expert = test::device().tensor(DType::u32, {2, 4}, "e"), weight = test::device().tensor(DType::f32, {2, 4}, "w");
  test::expect_error<Error>([&] { test::run(ExpertRoute{.logits = logits, .expert = expert, .weight = weight}); }, "4 of 3 experts");
}

}  // namespace
}  // namespace nibble::expert_route_test
