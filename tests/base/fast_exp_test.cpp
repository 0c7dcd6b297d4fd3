#include "nibble/base/fast_exp.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace nibble::fast_exp_test {
namespace {

TEST(FastExp, IsWithin2e7OfItself) {
  double most = 0;
  for (float x = -1e-30f; x > -87.0f; x = x * 1.0003f - 1e-6f) most = std::max(most, std::abs(fast_exp(x) / std::exp(double{x}) - 1));
  EXPECT_LT(most, 2e-7);
  EXPECT_GT(most, 1e-9);  // something was compared
}

TEST(FastExp, IsOneAtZeroAndNeverFallsBelowTheLeast) {
  EXPECT_EQ(fast_exp(0.0f), 1.0f);
  EXPECT_EQ(fast_exp(-0.0f), 1.0f);
  const float least = fast_exp(-87.0f);
  EXPECT_GE(least, std::numeric_limits<float>::min());
  for (const float x : {-88.0f, -1e30f, -std::numeric_limits<float>::infinity()}) EXPECT_EQ(fast_exp(x), least);
}

}  // namespace
}  // namespace nibble::fast_exp_test
