#include "nibble/io/json.h"
#include "tests/train/golden_run.h"

#include <cmath>
#include <cstdlib>

namespace nibble::curve_test {
namespace {

// The bars of docs/numerics.md, relative.
double loss_bar(ProductPath path) { return path == ProductPath::f32 ? 5e-4 : 2e-3; }
constexpr double valid_bar = 2e-3;

bool full_run() { return std::getenv("NIBBLE_TEST_FULL") != nullptr; }

// Trains the first `steps` of the reference run and holds each of them against it.
void expect_reference_curve(ProductPath path, std::uint64_t steps) {
  const Json reference = read_json_file(test::source_path("tests/golden/tiny/curve.json"));
  const auto losses = reference["loss"].get<std::vector<double>>();
  const test::TemporaryFolder folder;
  TrainOptions options = test::golden_options(folder / "run");
  options.max_steps = steps;
  if (steps == losses.size()) options.valid = test::source_path("data/define/valid.jsonl");
  const test::TrainedCurve curve = test::train_curve(options, path);
  ASSERT_EQ(curve.steps.size(), steps);
  double worst = 0;
  for (std::size_t i = 0; i < steps; ++i) {
    const double error = std::abs(curve.steps[i].loss / losses[i] - 1);
    EXPECT_LE(error, loss_bar(path)) << "step " << i + 1 << ": " << curve.steps[i].loss << " and not " << losses[i];
    worst = std::max(worst, error);
  }
  ::testing::Test::RecordProperty("worst_loss_error", std::to_string(worst));
  if (options.valid.empty()) return;
  ASSERT_EQ(curve.evaluations.size(), 1u);
  EXPECT_NEAR(curve.evaluations[0].eval_loss / reference["valid_loss_after"].get<double>(), 1.0, valid_bar);
  EXPECT_EQ(curve.evaluations[0].step, steps);
}

bool has(ProductPath path) {
  const auto paths = test::product_paths();
  return std::find(paths.begin(), paths.end(), path) != paths.end();
}

TEST(Curve, IsTheReferenceInF32) { expect_reference_curve(ProductPath::f32, 200); }

TEST(Curve, IsTheReferenceInF16Vectors) {
  if (test::must_skip(has(ProductPath::f16))) GTEST_SKIP() << "This adapter has no f16 products.";
  expect_reference_curve(ProductPath::f16, full_run() ? 200 : 40);
}

TEST(Curve, IsTheReferenceWithSubgroupMatrices) {
  if (test::must_skip(has(ProductPath::matrix))) GTEST_SKIP() << "This adapter has no subgroup matrices.";
  expect_reference_curve(ProductPath::matrix, full_run() ? 200 : 40);
}

}  // namespace
}  // namespace nibble::curve_test
