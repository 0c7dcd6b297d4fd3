#include "nibble/quant/int8.h"

#include "nibble/base/error.h"
#include "nibble/base/rng.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace nibble::int8_test {
namespace {

TEST(Int8, IsWithinHalfAStep) {
  Rng rng(1);
  std::vector<float> values(1000), back(1000);
  for (float& value : values) value = rng.uniform(-3.0f, 5.0f);
  std::vector<std::int8_t> codes(1000);
  std::vector<float> scales(16);
  int8_quantize(values, codes, scales);
  int8_dequantize(codes, scales, back);
  for (std::size_t b = 0; b < 16; ++b) {
    float largest = 0;
    for (std::size_t i = b * 64; i < std::min<std::size_t>(1000, b * 64 + 64); ++i) {
      largest = std::max(largest, std::fabs(values[i]));
      ASSERT_LE(std::fabs(values[i] - back[i]), 0.5001f * scales[b]) << i;
    }
    EXPECT_FLOAT_EQ(scales[b], largest / 127);
  }
}

TEST(Int8, BlocksOfZerosAndOfTheLeastNumbers) {
  std::vector<float> values(192), back(192);
  values[64] = 1e-44f;   // its scale would be no normal number
  values[128] = -1e-30f;
  std::vector<std::int8_t> codes(192, 5);
  std::vector<float> scales(3, 5);
  int8_quantize(values, codes, scales);
  EXPECT_EQ(scales[0], 0.0f);
  EXPECT_EQ(scales[1], 0.0f);
  EXPECT_EQ(codes[128], -127);
  int8_dequantize(codes, scales, back);
  EXPECT_FLOAT_EQ(back[128], -1e-30f);
  EXPECT_EQ(back[64], 0.0f);
}

TEST(Int8, IsTheSameByAnyNumberOfThreads) {
  Rng rng(2);
  std::vector<float> values(64 * 5000);
  for (float& value : values) value = rng.uniform(-1.0f, 1.0f);
  std::vector<std::int8_t> one(values.size()), many(values.size());
  std::vector<float> scales(5000), others(5000);
  int8_quantize(values, one, scales, 1);
  int8_quantize(values, many, others, 3);
  EXPECT_EQ(one, many);
  EXPECT_EQ(scales, others);
}

}  // namespace
}  // namespace nibble::int8_test
