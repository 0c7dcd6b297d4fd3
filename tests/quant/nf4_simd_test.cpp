#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "nibble/base/half.h"
#include "nibble/base/rng.h"
#include "tests/quant/quantize.h"

namespace nibble::nf4_simd_test {
namespace {

using test::quantize;

template <typename Bits>
void store(std::vector<std::byte>& bytes, std::size_t i, Bits bits) {
  std::memcpy(bytes.data() + 1 + i * sizeof bits, &bits, sizeof bits);
}

// Finite values from the second byte on, so that nothing is aligned: near those of a model, or of every magnitude that
// the type has, denormals and zeros too.
std::vector<std::byte> random_bytes(DType dtype, std::size_t count, bool any_magnitude, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<std::byte> bytes(1 + count * size_of(dtype));
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t bits = rng.next_u32();
    const auto low = static_cast<std::uint16_t>(bits);
    const float value = rng.normal() * 0.05f;
    if (dtype == DType::f32) {
      const float chosen = any_magnitude ? std::bit_cast<float>(bits) : value;
      store(bytes, i, std::isfinite(chosen) ? chosen : 0.0f);
    } else if (dtype == DType::f16) {
      const auto chosen = any_magnitude ? low : f32_to_f16(value);
      store(bytes, i, std::isfinite(f16_to_f32(chosen)) ? chosen : std::uint16_t{0});
    } else {
      const auto chosen = any_magnitude ? low : f32_to_bf16(value);
      store(bytes, i, std::isfinite(bf16_to_f32(chosen)) ? chosen : std::uint16_t{0});
    }
  }
  return bytes;
}

class Nf4Simd : public testing::TestWithParam<std::tuple<Simd, DType, bool>> {};

TEST_P(Nf4Simd, EqualsTheScalarCode) {
  const auto [simd, dtype, any_magnitude] = GetParam();
  if (simd > best_simd()) GTEST_SKIP() << "this processor lacks the instructions";
  for (const std::size_t block_size : {64, 128, 4096}) {
    for (const std::size_t count : {1, 63, 64, 65, 127, 4096, 300'001}) {
      const auto bytes = random_bytes(dtype, count, any_magnitude, count);
      const auto values = std::span(bytes).subspan(1);
      const auto expected = quantize(dtype, values, {.block_size = block_size, .threads = 1, .simd = Simd::scalar});
      for (const unsigned threads : {1u, 3u}) {
        const auto q = quantize(dtype, values, {.block_size = block_size, .threads = threads, .simd = simd});
        ASSERT_TRUE(q.packed == expected.packed) << count;
        ASSERT_TRUE(q.absmax == expected.absmax) << count;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Nf4Simd,
                         testing::Combine(testing::Values(Simd::avx2, Simd::avx512),
                                          testing::Values(DType::f32, DType::f16, DType::bf16), testing::Bool()));

// Every f16 and every bf16 there is up to the largest magnitude of its block, which is 1.
TEST(Nf4SimdExhaustive, EveryHalfInABlockOfOne) {
  for (const DType dtype : {DType::f16, DType::bf16}) {
    const std::uint16_t one = dtype == DType::f16 ? f32_to_f16(1.0f) : f32_to_bf16(1.0f);
    std::vector<std::uint16_t> values;
    for (std::uint32_t bits = 0; bits <= 0xffff; ++bits) {
      const auto half = static_cast<std::uint16_t>(bits);
      if ((half & 0x7fff) > one) continue;
      if (values.size() % 64 == 0) values.push_back(one);
      values.push_back(half);
    }
    values.resize((values.size() + 63) / 64 * 64);
    const auto bytes = std::as_bytes(std::span(values));
    const auto expected = quantize(dtype, bytes, {.simd = Simd::scalar});
    for (const auto simd : test::all_simd())
      EXPECT_TRUE(quantize(dtype, bytes, {.simd = simd}).packed == expected.packed);
  }
}

}  // namespace
}  // namespace nibble::nf4_simd_test
