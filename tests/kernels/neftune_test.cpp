#include "nibble/kernels/neftune.h"

#include "tests/support/gpu_test.h"

#include <algorithm>
#include <cmath>

namespace nibble::neftune_test {
namespace {

// Two segments, of 3 and of 61 tokens.
constexpr std::uint32_t rows = 64, split = 3;

std::vector<float> noise(std::uint32_t columns, float alpha, std::uint32_t seed) {
  std::vector<std::uint32_t> begin(rows), end(rows);
  for (std::uint32_t t = 0; t < rows; ++t) {
    begin[t] = t < split ? 0 : split;
    end[t] = t < split ? split : rows;
  }
  const auto before = test::random_values(rows * columns, 1);
  const test::GuardedTensor x(DType::f32, {rows, columns});
  test::device().write(x.tensor(), std::as_bytes(std::span(before)));
  test::run(Neftune{.x = x.tensor(), .segment_begin = test::upload_u32(begin), .segment_end = test::upload_u32(end),
                    .alpha = alpha, .seed = seed});
  x.expect_guards_intact();
  auto result = test::download(x.tensor());
  for (std::size_t i = 0; i < result.size(); ++i) result[i] -= before[i];
  return result;
}

// Uniform in +-alpha / sqrt(L * C): the bound is kept and nearly reached, the mean is 0, the variance a third of the square.
TEST(Neftune, IsUniformAndScaledByTheSegment) {
  for (const std::uint32_t columns : {128u, 131u}) {
    const auto all = noise(columns, 5.0f, 7);
    for (const auto& [first, last] : {std::pair{0u, split}, std::pair{split, rows}}) {
      const std::vector<float> part(all.begin() + first * columns, all.begin() + last * columns);
      const double bound = 5.0 / std::sqrt(double(last - first) * columns), count = double(part.size());
      double sum = 0, squares = 0, largest = 0;
      for (const float value : part) {
        sum += value;
        squares += double{value} * value;
        largest = std::max(largest, std::fabs(double{value}));
      }
      EXPECT_LE(largest, bound * (1 + 1e-4));
      EXPECT_GT(largest, 0.97 * bound);
      // Four standard deviations of the sample's mean and of its mean square.
      EXPECT_LT(std::fabs(sum / count), 4 * bound / std::sqrt(3 * count));
      EXPECT_NEAR(squares / count, bound * bound / 3, 4 * bound * bound * std::sqrt(4.0 / 45 / count));
    }
  }
}

TEST(Neftune, TheSeedDecides) {
  const auto first = noise(64, 5.0f, 1);
  EXPECT_EQ(noise(64, 5.0f, 1), first);
  const auto other = noise(64, 5.0f, 2);
  std::size_t same = 0;
  for (std::size_t i = 0; i < other.size(); ++i) same += other[i] == first[i];
  EXPECT_LT(same, other.size() / 100);
}

TEST(Neftune, AlphaZeroChangesNothing) {
  const auto none = noise(64, 0.0f, 1);
  EXPECT_TRUE(std::all_of(none.begin(), none.end(), [](float value) { return value == 0.0f; }));
}

}  // namespace
}  // namespace nibble::neftune_test
