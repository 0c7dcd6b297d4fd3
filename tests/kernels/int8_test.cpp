#include "nibble/kernels/int8.h"

#include "nibble/kernels/embedding.h"
#include "nibble/kernels/nf4.h"
#include "nibble/quant/int8.h"
#include "nibble/quant/nf4.h"
#include "tests/support/gpu_test.h"

#include <cmath>

namespace nibble::int8_test {
namespace {

struct Coded {
  std::vector<std::int8_t> codes;
  std::vector<float> scales, values;

  Coded(std::size_t count, std::uint64_t seed) : codes(count), scales(count / int8_block), values(count) {
    int8_quantize(test::random_values(count, seed, 0.3f), codes, scales);
    int8_dequantize(codes, scales, values);
  }
};

template <typename Code>
Tensor words(std::span<const Code> bytes) {
  const Tensor tensor = test::device().tensor(DType::u32, {static_cast<std::uint32_t>(bytes.size() / 4)}, "codes");
  test::device().write(tensor, std::as_bytes(bytes));
  return tensor;
}

Tensor numbers(std::span<const float> values) { return test::upload(values, {static_cast<std::uint32_t>(values.size())}); }

TEST(Int8, DecodesAsTheProcessorDoes) {
  const std::uint32_t out = 37, in = 192;
  const Coded coded(out * in, 3);
  for (const float scale : {1.0f, 0.25f}) {
    const test::GuardedTensor result(DType::f32, {out, in});
    test::run(DequantizeInt8{.w = {words<std::int8_t>(coded.codes), numbers(coded.scales)}, .out = {.data = result.tensor(), .scale = scale}});
    result.expect_guards_intact();
    auto expected = coded.values;
    for (float& value : expected) value /= scale;
    EXPECT_EQ(test::download(result.tensor()), expected);
  }
  if (test::must_skip(test::device().info().f16)) GTEST_SKIP() << "No f16.";
  const test::GuardedTensor halves(DType::f16, {out, in});
  test::run(DequantizeInt8{.w = {words<std::int8_t>(coded.codes), numbers(coded.scales)}, .out = {.data = halves.tensor(), .scale = 0.5f}});
  halves.expect_guards_intact();
  const auto given = test::download(halves.tensor());
  for (std::size_t i = 0; i < given.size(); ++i) ASSERT_EQ(given[i], f16_to_f32(f32_to_f16(2 * coded.values[i]))) << i;
}

// Rows of a table in codes are those of the same table decoded.
TEST(EmbeddingCodes, RowsAreTheTables) {
  const std::uint32_t vocabulary = 50;
  const std::vector<std::uint32_t> tokens = {0, 49, 7, 7, 50, 31, 0xffffffffu};
  for (const std::uint32_t columns : {64u, 320u}) {
    const std::size_t count = std::size_t{vocabulary} * columns;
    const Coded eight(count, 4);
    std::vector<std::uint8_t> packed(count / 2);
    std::vector<float> absmax(count / nf4_block), four(count);
    const auto given = test::random_values(count, 5);
    nf4_quantize(DType::f32, std::as_bytes(std::span(given)), packed, absmax);
    nf4_dequantize(packed, absmax, four);
    for (const bool in_four : {true, false}) {
      const test::GuardedTensor x(DType::f32, {7, columns});
      test::run(EmbeddingCodes{.tokens = test::upload_u32(tokens), .vocabulary = vocabulary,
                               .codes = in_four ? words<std::uint8_t>(packed) : words<std::int8_t>(eight.codes),
                               .scales = numbers(in_four ? absmax : eight.scales), .x = x.tensor()});
      x.expect_guards_intact();
      const auto result = test::download(x.tensor());
      const auto& table = in_four ? four : eight.values;
      for (std::size_t i = 0; i < result.size(); ++i) {
        const std::uint32_t token = tokens[i / columns];
        if (token >= vocabulary) {
          ASSERT_TRUE(std::isnan(result[i])) << i;
        } else {
          ASSERT_EQ(result[i], table[std::size_t{token} * columns + i % columns]) << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble::int8_test
