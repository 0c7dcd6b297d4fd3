#include "nibble/quant/low_rank.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "nibble/base/error.h"

namespace nibble::low_rank_test {
namespace {

std::vector<float> matrix(std::size_t rows, std::size_t columns) {
  std::vector<float> w;
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < columns; ++j) {
      const auto whole = static_cast<double>((i * 131 + j * 71 + i * j * 17 + i * i * 3) % 101);
      w.push_back(static_cast<float>((whole - 50) / 50 / (1 + 0.1 * static_cast<double>(i))));
    }
  }
  return w;
}

// ||w - left right||
double error(const std::vector<float>& w, std::size_t rows, std::size_t columns, const LowRank& found) {
  const std::size_t rank = found.singular.size();
  double sum = 0;
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < columns; ++j) {
      double value = w[i * columns + j];
      for (std::size_t k = 0; k < rank; ++k) value -= double{found.left[i * rank + k]} * found.right[k * columns + j];
      sum += value * value;
    }
  }
  return std::sqrt(sum);
}

double squares(std::span<const float> values, std::size_t first, std::size_t step, std::size_t count) {
  double sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += double{values[first + i * step]} * values[first + i * step];
  return sum;
}

// Singular values and the error of the best approximation are numpy.linalg.svd's.
TEST(LowRank, FindsWhatNumpyFinds) {
  struct Case {
    std::size_t rows, columns;
    std::array<double, 6> singular;
    double error;
  };
  for (const Case& c : {Case{40, 65, {4.88806946, 4.66690049, 4.44377924, 3.6744534, 3.43275779, 3.27892727}, 9.41320165},
                        Case{70, 24, {3.37903082, 3.16637045, 2.79573146, 2.56076043, 2.50697352, 2.28383213}, 5.32417979}}) {
    const auto w = matrix(c.rows, c.columns);
    // All of the range, and a subspace that iterations have to turn towards it.
    for (const auto& [oversampling, iterations] : {std::pair{64u, 1u}, {10u, 40u}}) {
      const LowRank found = low_rank(w, c.rows, c.columns, {.rank = 6, .iterations = iterations, .oversampling = oversampling});
      for (std::size_t k = 0; k < 6; ++k) {
        EXPECT_NEAR(found.singular[k], c.singular[k], 1e-4 * c.singular[k]) << k;
        // Each half has the singular value's root for its length.
        EXPECT_NEAR(squares(found.left, k, 6, c.rows), found.singular[k], 1e-5 * found.singular[k]);
        EXPECT_NEAR(squares(found.right, k * c.columns, 1, c.columns), found.singular[k], 1e-5 * found.singular[k]);
      }
      EXPECT_NEAR(error(w, c.rows, c.columns, found), c.error, 1e-5 * c.error);
    }
    const LowRank few = low_rank(w, c.rows, c.columns, {.rank = 6, .iterations = 0, .oversampling = 2});
    EXPECT_GT(error(w, c.rows, c.columns, few), 1.02 * c.error);
    EXPECT_LT(error(w, c.rows, c.columns, few), 1.5 * c.error);
  }
}

TEST(LowRank, IsTheSameForAnyNumberOfThreads) {
  const auto w = matrix(1500, 300);
  const LowRank one = low_rank(w, 1500, 300, {.rank = 5, .iterations = 2, .threads = 1});
  for (const unsigned threads : {2u, 7u}) {
    const LowRank some = low_rank(w, 1500, 300, {.rank = 5, .iterations = 2, .threads = threads});
    EXPECT_EQ(one.left, some.left);
    EXPECT_EQ(one.right, some.right);
  }
}

// A matrix of less rank than is asked for, and one of zeros.
TEST(LowRank, LeavesNothingOfAMatrixOfLowRank) {
  std::vector<float> w;
  for (std::size_t i = 0; i < 30 * 20; ++i) w.push_back(static_cast<float>(i / 20 % 7) * static_cast<float>(i % 20 % 3) - 1.0f);
  EXPECT_LT(error(w, 30, 20, low_rank(w, 30, 20, {.rank = 4})), 1e-4);
  const LowRank none = low_rank(std::vector<float>(600), 30, 20, {.rank = 4});
  EXPECT_EQ(none.singular, std::vector<double>(4));
  EXPECT_EQ(none.left, std::vector<float>(120));
  EXPECT_EQ(none.right, std::vector<float>(80));
}

TEST(LowRank, RefusesARankThatAMatrixCannotHave) {
  const std::vector<float> w(12);
  EXPECT_THROW(low_rank(w, 3, 4, {.rank = 4}), Error);
  EXPECT_THROW(low_rank(w, 3, 4, {.rank = 0}), Error);
  EXPECT_THROW(low_rank(w, 4, 4, {.rank = 1}), Error);
}

}  // namespace
}  // namespace nibble::low_rank_test
