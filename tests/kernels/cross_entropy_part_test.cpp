#include "nibble/kernels/cross_entropy_part.h"

#include "nibble/base/error.h"
#include "nibble/kernels/cross_entropy.h"
#include "tests/support/guarded_operand.h"

#include <algorithm>
#include <cmath>

namespace nibble::cross_entropy_part_test {
namespace {

constexpr std::uint32_t rows = 6;

struct Case {
  std::uint32_t columns, part;
  float gamma = 0;
  bool weighted = false;
};

std::vector<std::uint32_t> labels_for(std::uint32_t columns) {
  return {0, columns - 1, columns / 2, 1, columns / 3, columns + 5};  // the last is beyond
}

// Columns [begin, end) of a matrix.
std::vector<float> columns_of(std::span<const float> all, std::uint32_t columns, std::uint32_t begin, std::uint32_t end) {
  std::vector<float> part;
  for (std::uint32_t r = 0; r < rows; ++r) part.insert(part.end(), all.begin() + r * columns + begin, all.begin() + r * columns + end);
  return part;
}

struct Result {
  std::vector<float> loss, slopes;
  std::vector<std::uint32_t> correct;
};

Result whole(ProductPath path, const std::vector<float>& logits, const Case& c, const Tensor& labels, const Tensor& weights) {
  auto& device = test::device();
  const Tensor values = test::upload(logits, {rows, c.columns}), loss = device.tensor(DType::f32, {rows}, "loss"),
               correct = device.tensor(DType::u32, {rows}, "correct");
  const Operand slopes = path == ProductPath::f32 ? Operand{values, {}} : make_operand(device, path, rows, c.columns, "slopes");
  test::run(CrossEntropy{.logits = values, .labels = labels, .loss = loss, .correct = correct, .d_logits = slopes, .factor = 0.25f,
                         .weights = weights, .focal_gamma = c.gamma});
  return {test::download(loss), test::download(slopes), device.read<std::uint32_t>(correct)};
}

Result in_parts(ProductPath path, const std::vector<float>& logits, const Case& c, const Tensor& labels, const Tensor& weights) {
  auto& device = test::device();
  const test::GuardedTensor loss(DType::f32, {rows}), correct(DType::u32, {rows}), stats(DType::f32, {rows, 4});
  const auto upload = [&](std::uint32_t begin, std::uint32_t end) {
    return test::upload(columns_of(logits, c.columns, begin, end), {rows, end - begin});
  };
  for (std::uint32_t begin = 0; begin < c.columns; begin += c.part) {
    const std::uint32_t end = std::min(c.columns, begin + c.part);
    test::run(CrossEntropyPart{.part = {upload(begin, end), begin}, .begins = begin == 0, .ends = end == c.columns, .labels = labels,
                               .stats = stats.tensor(), .loss = loss.tensor(), .correct = correct.tensor()});
  }
  Result result{test::download(loss.tensor()), std::vector<float>(std::size_t{rows} * c.columns), device.read<std::uint32_t>(correct.tensor())};
  for (std::uint32_t begin = 0; begin < c.columns; begin += c.part) {
    const std::uint32_t end = std::min(c.columns, begin + c.part);
    const test::GuardedOperand slopes(path, rows, end - begin);
    const Tensor values = path == ProductPath::f32 ? slopes.operand().data : upload(begin, end);
    const auto given = columns_of(logits, c.columns, begin, end);
    if (path == ProductPath::f32) device.write(values, std::as_bytes(std::span(given)));
    test::run(CrossEntropySlopes{.part = {values, begin}, .labels = labels, .stats = stats.tensor(), .d_logits = slopes.operand(),
                                 .factor = 0.25f, .weights = weights, .focal_gamma = c.gamma});
    slopes.expect_guards_intact();
    const auto part = test::download(slopes.operand());
    for (std::uint32_t r = 0; r < rows; ++r) {
      std::copy_n(part.begin() + r * (end - begin), end - begin, result.slopes.begin() + r * c.columns + begin);
    }
  }
  for (const auto* guarded : {&loss, &correct, &stats}) guarded->expect_guards_intact();
  return result;
}

void expect_same(const Result& given, const Result& expected, std::uint32_t columns, double tolerance) {
  EXPECT_EQ(given.correct, expected.correct);
  for (std::uint32_t r = 0; r < rows; ++r) {
    if (std::isnan(expected.loss[r])) {
      EXPECT_TRUE(std::isnan(given.loss[r])) << r;
      continue;
    }
    EXPECT_NEAR(given.loss[r], expected.loss[r], 2e-6 * (1 + std::fabs(expected.loss[r]))) << r;
    const auto row = [&](const Result& of) { return std::span(of.slopes).subspan(std::size_t{r} * columns, columns); };
    EXPECT_LE(test::relative_error(row(given), row(expected)), tolerance) << r;
  }
}

TEST(CrossEntropyPart, AreTheWhole) {
  const std::vector<Case> cases = {{64, 64}, {300, 128}, {300, 100, 2.0f}, {1000, 256, 0, true}, {37, 8}, {1000, 128, 1.5f, true}};
  for (const ProductPath path : test::product_paths()) {
    if (path == ProductPath::f16) continue;  // the operands of matrix
    for (const Case& c : cases) {
      SCOPED_TRACE(fmt::format("{} {} columns in parts of {}", test::name_of(path), c.columns, c.part));
      auto logits = test::random_values(std::size_t{rows} * c.columns, c.columns, 12.0f);
      const auto ids = labels_for(c.columns);
      // Row 0's label has the largest logit; row 1's shares the largest with an earlier entry.
      logits[ids[0]] = 20.0f;
      logits[c.columns + ids[1]] = logits[c.columns + 3] = 20.0f;
      const Tensor labels = test::upload_u32(ids);
      const Tensor weights = c.weighted ? test::upload(test::random_values(rows, 5), {rows}) : Tensor{};
      const Result expected = whole(path, logits, c, labels, weights);
      EXPECT_EQ(expected.correct[0], 1u);
      EXPECT_EQ(expected.correct[1], 0u);
      expect_same(in_parts(path, logits, c, labels, weights), expected, c.columns, path == ProductPath::f32 ? 2e-6 : 1e-3);
    }
  }
}

// An earlier equal is larger, a later one is not; so it must be across parts, and with parts that lie far apart.
TEST(CrossEntropyPart, OfEqualsTheFirstIsRight) {
  const Case c{.columns = 64, .part = 16};
  std::vector<float> logits(std::size_t{rows} * c.columns, -1.0f);
  const std::vector<std::uint32_t> ids = {5, 20, 40, 63, 0, 17};
  for (std::uint32_t r = 0; r < rows; ++r) logits[r * c.columns + ids[r]] = 3.0f;
  logits[0 * c.columns + 50] = 3.0f;    // later, another part
  logits[1 * c.columns + 2] = 3.0f;     // earlier, another part
  logits[2 * c.columns + 41] = 3.0f;    // later, the same part
  logits[3 * c.columns + 62] = 3.0f;    // earlier, the same part
  logits[4 * c.columns + 60] = 90.0f;   // far larger, later
  logits[5 * c.columns + 60] = -90.0f;
  const Tensor labels = test::upload_u32(ids);
  const Result parts = in_parts(ProductPath::f32, logits, c, labels, {});
  EXPECT_EQ(parts.correct, (std::vector<std::uint32_t>{1, 0, 1, 0, 0, 1}));
  expect_same(parts, whole(ProductPath::f32, logits, c, labels, {}), c.columns, 2e-6);
}

}  // namespace
}  // namespace nibble::cross_entropy_part_test
