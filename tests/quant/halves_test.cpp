#include "nibble/quant/halves.h"

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "nibble/base/error.h"
#include "nibble/base/half.h"
#include "nibble/base/rng.h"

namespace nibble::halves_test {
namespace {

// Bits of every exponent, ties and their neighbours, subnormals, and what is no number.
std::vector<float> awkward_values() {
  std::vector<float> values = {0.0f, -0.0f, 65504.0f, 65519.996f, 65520.0f, -65520.0f, 0x1p-24f, 0x1p-25f, 0x1.000002p-25f,
                               0x1p-14f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::denorm_min()};
  Rng rng(3);
  for (int i = 0; i < 200'000; ++i) {
    const float value = std::bit_cast<float>(rng.next_u32());
    if (!std::isnan(value)) values.push_back(value);
  }
  for (int exponent = -26; exponent < 16; ++exponent) {
    for (std::uint32_t i = 0; i < 2048; ++i) {
      const float tie = std::ldexp(1.0f + static_cast<float>(i) * 0x1p-11f, exponent);
      values.insert(values.end(), {tie, -tie, std::nextafter(tie, 0.0f), std::nextafter(tie, 1e9f)});
    }
  }
  return values;
}

TEST(Halves, AreThoseOfTheCompilerForEveryInstructionSet) {
  const auto values = awkward_values();
  for (const Simd simd : {Simd::scalar, Simd::avx2, Simd::avx512}) {
    if (simd > best_simd()) continue;
    for (const float factor : {1.0f, 0x1p13f, 0x1p-9f}) {
      std::vector<std::uint16_t> halves(values.size());
      to_f16(values, factor, halves, simd);
      for (std::size_t i = 0; i < values.size(); ++i) {
        ASSERT_EQ(halves[i], f32_to_f16(values[i] * factor)) << values[i] << " times " << factor;
      }
    }
  }
}

TEST(Halves, OfAnyNumberOfValuesAndNoMore) {
  const auto values = awkward_values();
  for (std::size_t count = 0; count < 30; ++count) {
    std::vector<std::uint16_t> halves(count + 1, 0x1234);
    to_f16(std::span(values).first(count), 1.0f, std::span(halves).first(count));
    EXPECT_EQ(halves[count], 0x1234) << count;
    for (std::size_t i = 0; i < count; ++i) EXPECT_EQ(halves[i], f32_to_f16(values[i]));
  }
  std::vector<std::uint16_t> halves(3);
  EXPECT_THROW(to_f16(std::span(values).first(4), 1.0f, halves), Error);
}

}  // namespace
}  // namespace nibble::halves_test
