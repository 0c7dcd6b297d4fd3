#include "nibble/kernels/cross_entropy.h"

#include "nibble/base/error.h"
#include "tests/support/guarded_operand.h"

#include <algorithm>
#include <cmath>

namespace nibble::cross_entropy_test {
namespace {

struct Reference {
  std::vector<double> loss, slopes;
  std::vector<std::uint32_t> correct;
};

// What the rows' gradients are multiplied by besides the factor.
struct Weighting {
  std::vector<float> weights;  // none: 1 each
  float gamma = 0;
};

Reference reference(std::span<const double> logits, std::span<const std::uint32_t> labels, double factor,
                    const Weighting& weighting = {}) {
  Reference result;
  const std::size_t columns = logits.size() / labels.size();
  for (std::size_t r = 0; r < labels.size(); ++r) {
    const auto row = logits.subspan(r * columns, columns);
    const auto largest = std::max_element(row.begin(), row.end());
    double others = 0;
    for (std::size_t c = 0; c < columns; ++c) others += c == labels[r] ? 0 : std::exp(row[c] - *largest);
    const double total = others + std::exp(row[labels[r]] - *largest);
    result.loss.push_back(std::log(total) + *largest - row[labels[r]]);
    result.correct.push_back(largest - row.begin() == std::ptrdiff_t(labels[r]));
    const double weight = weighting.weights.empty() ? 1.0 : double{weighting.weights[r]};
    const double multiplier = factor * weight * std::pow(others / total, double{weighting.gamma});
    for (std::size_t c = 0; c < columns; ++c) {
      result.slopes.push_back(multiplier * (c == labels[r] ? -others : std::exp(row[c] - *largest)) / total);
    }
  }
  return result;
}

struct Output {
  std::vector<float> loss;
  std::vector<std::uint32_t> correct;
};

// Runs with a gradient and without, expects the same loss, and checks everything against the reference.
Output check_case(ProductPath path, const std::vector<float>& logits, const std::vector<std::uint32_t>& labels,
                  float factor, double tolerance) {
  const auto rows = static_cast<std::uint32_t>(labels.size());
  const auto columns = static_cast<std::uint32_t>(logits.size() / labels.size());
  const test::GuardedOperand slopes(path, rows, columns);
  const Tensor labels_tensor = test::upload_u32(labels);
  Tensor logits_tensor = slopes.operand().data;
  if (path == ProductPath::f32) {
    test::device().write(logits_tensor, std::as_bytes(std::span(logits)));
  } else {
    logits_tensor = test::upload(logits, {rows, columns});
  }
  const test::GuardedTensor loss(DType::f32, {rows}), correct(DType::u32, {rows}), loss_only(DType::f32, {rows});
  test::run(CrossEntropy{.logits = logits_tensor, .labels = labels_tensor, .loss = loss_only.tensor(),
                         .correct = correct.tensor(), .factor = factor});
  test::run(CrossEntropy{.logits = logits_tensor, .labels = labels_tensor, .loss = loss.tensor(),
                         .correct = correct.tensor(), .d_logits = slopes.operand(), .factor = factor});
  slopes.expect_guards_intact();
  loss.expect_guards_intact();
  loss_only.expect_guards_intact();
  correct.expect_guards_intact();
  const auto expected = reference(std::vector<double>(logits.begin(), logits.end()), labels, double{factor});
  slopes.expect_values(expected.slopes, tolerance);
  Output output{test::download(loss.tensor()), test::device().read<std::uint32_t>(correct.tensor())};
  // Two pipelines: a GPU's compiler may contract other products in each.
  EXPECT_LE(test::relative_error(test::download(loss_only.tensor()), output.loss), 0x1p-22);
  EXPECT_EQ(output.correct, expected.correct);
  for (std::size_t r = 0; r < rows; ++r) {
    const double largest = std::fabs(double{*std::max_element(logits.begin(), logits.end())});
    EXPECT_NEAR(output.loss[r], expected.loss[r], 1e-6 * (1 + largest + expected.loss[r])) << r;
  }
  return output;
}

// WGSL's exp(x) may err by 3 + 2|x| units of 2^-24; |x| is at most twice the logits' amplitude, and the sums add a little.
double tolerance_for(double amplitude) { return (16 + 8 * amplitude) * 0x1p-23; }

TEST(CrossEntropy, OddSizesEqualTheReference) {
  for (const auto path : test::product_paths()) {
    for (const auto& [rows, columns] : {std::pair{1u, 2u}, {3u, 5u}, {70u, 129u}, {9u, 256u}, {2u, 50001u}, {3u, 4096u}}) {
      SCOPED_TRACE(test::name_of(path) + " " + std::to_string(rows) + "x" + std::to_string(columns));
      const auto logits = test::random_values(std::size_t{rows} * columns, 1, 9.0f);
      std::vector<std::uint32_t> labels(rows);
      Rng rng(2);
      for (auto& label : labels) label = static_cast<std::uint32_t>(rng.uniform(0.0f, 0.999f) * float(columns));
      // Some rows are right.
      auto peaked = logits;
      for (std::size_t r = 0; r < rows; r += 2) peaked[r * columns + labels[r]] = 12.0f;
      check_case(path, peaked, labels, 1.0f / 1000, tolerance_for(12));
    }
  }
}

struct Slopes {
  std::vector<float> loss, values;
};

Slopes weighted_slopes(ProductPath path, std::span<const float> logits, std::span<const std::uint32_t> labels,
                       const Weighting& weighting, const test::GuardedOperand& slopes) {
  const auto rows = static_cast<std::uint32_t>(labels.size()), columns = static_cast<std::uint32_t>(logits.size()) / rows;
  Tensor logits_tensor = slopes.operand().data;
  if (path == ProductPath::f32) {
    test::device().write(logits_tensor, std::as_bytes(logits));
  } else {
    logits_tensor = test::upload(logits, {rows, columns});
  }
  const Tensor loss = test::device().tensor(DType::f32, {rows}, "loss"), correct = test::device().tensor(DType::u32, {rows}, "c");
  test::run(CrossEntropy{.logits = logits_tensor, .labels = test::upload_u32(labels), .loss = loss, .correct = correct,
                         .d_logits = slopes.operand(), .factor = 0.25f,
                         .weights = weighting.weights.empty() ? Tensor{} : test::upload(weighting.weights, {rows}),
                         .focal_gamma = weighting.gamma});
  return {test::download(loss), test::download(slopes.operand())};
}

// The exponent of pow(1 - p, gamma) = exp2(gamma log2(1 - p)) errs by gamma 2^-21 or 3 units in its last place, exp2(x) by
// 3 + 2|x| units; p stays below 1 - 2^-20 here, so that |x| is at most 20 gamma.
double tolerance_of_weights(double amplitude, double gamma) {
  return (1 + gamma) * tolerance_for(amplitude) + gamma * 0x1p-21 + (3 + 5 * 20 * gamma) * 0x1p-23;
}

TEST(CrossEntropy, WeightsAndFocalGammaMultiplyTheGradientAlone) {
  for (const auto path : test::product_paths()) {
    for (const auto& [rows, columns] : {std::pair{3u, 5u}, {70u, 129u}, {9u, 256u}}) {
      const auto logits = test::random_values(std::size_t{rows} * columns, 7, 9.0f);
      std::vector<std::uint32_t> labels(rows);
      for (std::uint32_t r = 0; r < rows; ++r) labels[r] = r * 31 % columns;
      auto weights = test::random_values(rows, 8, 2.0f);
      weights[1] = 0;
      const test::GuardedOperand plain(path, rows, columns);
      const Slopes without = weighted_slopes(path, logits, labels, {}, plain);
      for (const Weighting& weighting : {Weighting{weights, 0}, {{}, 1}, {{}, 2.5f}, {weights, 0.5f}}) {
        SCOPED_TRACE(test::name_of(path) + " " + std::to_string(rows) + " rows, gamma " + std::to_string(weighting.gamma));
        const test::GuardedOperand slopes(path, rows, columns);
        const Slopes with = weighted_slopes(path, logits, labels, weighting, slopes);
        slopes.expect_guards_intact();
        const auto expected = reference(std::vector<double>(logits.begin(), logits.end()), labels, 0.25, weighting);
        slopes.expect_values(expected.slopes, tolerance_of_weights(9, double{weighting.gamma}));
        EXPECT_EQ(with.loss, without.loss);
      }
      const test::GuardedOperand ones(path, rows, columns);
      EXPECT_EQ(weighted_slopes(path, logits, labels, {std::vector<float>(rows, 1.0f), 0}, ones).values, without.values);
    }
  }
}

TEST(CrossEntropy, ASureLabelHasNoFocalGradient) {
  for (const auto path : test::product_paths()) {
    const test::GuardedOperand slopes(path, 1, 4);
    // The others' exp is below every number of f32.
    const auto values = weighted_slopes(path, std::vector<float>{200, 0, 0, 0}, std::vector<std::uint32_t>{0}, {{}, 2}, slopes).values;
    EXPECT_EQ(values, std::vector<float>(4, 0.0f));
  }
}

TEST(CrossEntropy, EqualLogitsGoToTheLowestIndex) {
  for (const auto path : test::product_paths()) {
    const std::vector<float> row = {1, 3, 2, 3, 3, 0, -1, 3};
    std::vector<float> logits;
    for (int r = 0; r < 8; ++r) logits.insert(logits.end(), row.begin(), row.end());
    const auto output = check_case(path, logits, {0, 1, 2, 3, 4, 5, 6, 7}, 1.0f, tolerance_for(3));
    EXPECT_EQ(output.correct, (std::vector<std::uint32_t>{0, 1, 0, 0, 0, 0, 0, 0}));
  }
}

TEST(CrossEntropy, SureLabelsKeepTheirGradient) {
  for (const auto path : test::product_paths()) {
    // 1 - p is 4e-13 in the first row and 1e-26 in the second: nothing in f32, were it computed so.
    const auto output = check_case(path, {30, 1, 0, 1, 60, 0, 0, -20}, {0, 0}, 0.01f, tolerance_for(60));
    EXPECT_EQ(output.loss[1], 0.0f);
  }
}

TEST(CrossEntropy, LargeLogits) {
  for (const auto path : test::product_paths()) {
    check_case(path, {1e4f, -1e4f, 9990, 0, -3e4f, -3e4f, -3e4f, -3e4f, 1e30f, 0, -1e30f, 1}, {2, 1, 0}, 1.0f, 1e-4);
  }
}

TEST(CrossEntropy, WhatIsNoNumberIsSeen) {
  for (const auto path : test::product_paths()) {
    const auto logits = test::upload(std::vector<float>{1, 2, 3, NAN, 1, 2, 3, 4, INFINITY, 0, 0, 0, NAN, 1, 1, 1}, {4, 4});
    const auto loss = test::device().tensor(DType::f32, {4}, "loss"), correct = test::device().tensor(DType::u32, {4}, "c");
    const Operand slopes = path == ProductPath::f32 ? Operand{logits, {}} : make_operand(test::device(), path, 4, 4, "d");
    test::run(CrossEntropy{.logits = logits, .labels = test::upload_u32(std::vector<std::uint32_t>{0, 4, 0, 0}),
                           .loss = loss, .correct = correct, .d_logits = slopes});
    const auto losses = test::download(loss), values = test::download(slopes);
    for (std::size_t r = 0; r < 4; ++r) {
      EXPECT_TRUE(std::isnan(losses[r])) << r << " " << losses[r];
      const auto row = std::span(values).subspan(4 * r, 4);
      EXPECT_TRUE(std::any_of(row.begin(), row.end(), [](float v) { return !std::isfinite(v); })) << r;
    }
    EXPECT_EQ(test::device().read<std::uint32_t>(correct)[3], 0u);
  }
}

TEST(CrossEntropy, ReferenceSlopesEqualFiniteDifferences) {
  const auto values = test::random_values(40, 5, 4.0f);
  const std::vector<double> logits(values.begin(), values.end());
  const std::vector<std::uint32_t> labels = {3, 0, 7, 5, 1};
  const Weighting weighting{.weights = {1.0f, -0.5f, 0.0f, 2.0f, 0.25f}};
  const auto expected = reference(logits, labels, 0.25, weighting);
  const auto total = [&](const std::vector<double>& x) {
    double sum = 0;
    const auto losses = reference(x, labels, 0.25).loss;
    for (std::size_t r = 0; r < losses.size(); ++r) sum += 0.25 * double{weighting.weights[r]} * losses[r];
    return sum;
  };
  std::vector<std::size_t> indices(40);
  for (std::size_t i = 0; i < 40; ++i) indices[i] = i;
  const auto slopes = test::finite_differences(total, logits, indices);
  for (std::size_t i = 0; i < 40; ++i) EXPECT_NEAR(slopes[i], expected.slopes[i], 1e-8);
}

TEST(CrossEntropy, LargestVocabularyAndMoreThanOneBinding) {
  const std::uint32_t rows = 130, columns = 262144;  // 130 MiB
  const auto logits = test::device().tensor(DType::f32, {rows, columns}, "logits");
  std::vector<std::uint32_t> labels(rows, columns - 1);
  const auto loss = test::device().tensor(DType::f32, {rows}, "loss"), correct = test::device().tensor(DType::u32, {rows}, "c");
  test::run(CrossEntropy{.logits = logits, .labels = test::upload_u32(labels), .loss = loss, .correct = correct,
                         .d_logits = {logits, {}}});
  EXPECT_NEAR(test::download(loss)[rows - 1], std::log(262144.0), 1e-5);
  EXPECT_EQ(test::device().read<std::uint32_t>(correct)[rows - 1], 0u);
  const auto last = test::download(logits.rows(rows - 1, rows));
  EXPECT_NEAR(last[0] * 262144, 1.0, 1e-5);
  EXPECT_NEAR(last[columns - 1], -262143.0 / 262144, 1e-6);
}

}  // namespace
}  // namespace nibble::cross_entropy_test
