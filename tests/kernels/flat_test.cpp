#include "nibble/base/error.h"
#include "nibble/kernels/convert.h"
#include "nibble/kernels/random_fill.h"
#include "nibble/kernels/scale_add.h"
#include "tests/support/gpu_test.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace nibble::flat_test {
namespace {

std::vector<DType> result_types() {
  return test::device().info().f16 ? std::vector{DType::f32, DType::f16} : std::vector{DType::f32};
}

Tensor upload_halves(std::span<const std::uint16_t> halves, DType dtype) {
  return test::device().tensor(dtype, {static_cast<std::uint32_t>(halves.size())}, halves, "halves");
}

TEST(Convert, EveryHalfIsReadExactly) {
  std::vector<std::uint16_t> halves(65536);
  std::iota(halves.begin(), halves.end(), std::uint16_t{0});
  for (const DType from : {DType::f16, DType::bf16}) {
    const auto y = test::device().tensor(DType::f32, {65536}, "y");
    test::run(Convert{.x = upload_halves(halves, from), .y = y});
    const auto values = test::download(y);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float expected = from == DType::f16 ? f16_to_f32(halves[i]) : bf16_to_f32(halves[i]);
      // Devices may take numbers below f32's normal range for zero.
      if (std::isnan(expected) || std::fabs(expected) < 0x1p-126f) {
        EXPECT_EQ(std::isnan(expected), std::isnan(values[i])) << i;
        EXPECT_FALSE(std::fabs(values[i]) > 0x1p-126f) << i;
      } else {
        EXPECT_EQ(values[i], expected) << i;
      }
    }
  }
}

TEST(Convert, OddSizesAndFactors) {
  for (const DType to : result_types()) {
    for (const std::uint32_t size : {1u, 2u, 3u, 1023u, 1025u, 4097u}) {
      const auto values = test::random_values(size, size);
      std::vector<std::uint16_t> bf16(size);
      for (std::size_t i = 0; i < size; ++i) bf16[i] = f32_to_bf16(values[i]);
      const test::GuardedTensor from_f32(to, {size}), from_bf16(to, {1, size});
      test::run(Convert{.x = test::upload(values, {size}), .y = from_f32.tensor(), .factor = 64});
      test::run(Convert{.x = upload_halves(bf16, DType::bf16), .y = from_bf16.tensor(), .factor = 0.5f});
      from_f32.expect_guards_intact();
      from_bf16.expect_guards_intact();
      const auto round = [&](float value) { return to == DType::f16 ? f16_to_f32(f32_to_f16(value)) : value; };
      const auto a = test::download(from_f32.tensor()), b = test::download(from_bf16.tensor());
      for (std::size_t i = 0; i < size; ++i) {
        EXPECT_EQ(a[i], round(64 * values[i])) << i;
        EXPECT_EQ(b[i], round(0.5f * bf16_to_f32(bf16[i]))) << i;
      }
    }
  }
}

TEST(Convert, MoreThanOneBinding) {
  const std::uint32_t size = 34'000'001;
  const auto x = test::device().tensor(DType::bf16, {size + 1}, "x"), y = test::device().tensor(DType::f32, {size}, "y");
  const std::vector<std::uint16_t> last = {f32_to_bf16(1.5f), f32_to_bf16(3.0f)};
  test::device().write(x.part(size - 1, {2}), std::as_bytes(std::span(last)));
  test::run(Convert{.x = x.part(0, {size}), .y = y, .factor = 2});
  EXPECT_EQ(test::download(y.part(size - 2, {2})), (std::vector<float>{0.0f, 3.0f}));
}

TEST(Convert, WrongTypesAreNamed) {
  gpu::Recorder recorder(test::device());
  const Tensor words = test::upload_u32(std::vector<std::uint32_t>(4)), floats = test::upload(std::vector<float>(4), {4});
  EXPECT_THROW(record(recorder, Convert{.x = words, .y = floats}), Error);
  EXPECT_THROW(record(recorder, Convert{.x = floats, .y = words}), Error);
  EXPECT_THROW(record(recorder, Convert{.x = floats, .y = floats.part(0, {3})}), Error);
}

TEST(ScaleAdd, OddSizes) {
  for (const std::uint32_t size : {1u, 1023u, 2049u}) {
    const auto x = test::random_values(size, 1), y = test::random_values(size, 2);
    const test::GuardedTensor result(DType::f32, {size});
    test::device().write(result.tensor(), std::as_bytes(std::span(y)));
    test::run(ScaleAdd{.x = test::upload(x, {size}), .y = result.tensor(), .a = 3.0f, .b = -0.5f});
    result.expect_guards_intact();
    const auto values = test::download(result.tensor());
    for (std::size_t i = 0; i < size; ++i) EXPECT_NEAR(values[i], 3.0 * x[i] - 0.5 * y[i], 5e-7) << i;
  }
}

TEST(RandomFill, IsNormalAndRepeats) {
  const std::uint32_t size = 100001;
  for (const DType dtype : result_types()) {
    const test::GuardedTensor a(dtype, {size}), b(dtype, {size}), c(dtype, {size});
    test::run(RandomFill{.x = a.tensor(), .seed = 7, .deviation = 2});
    test::run(RandomFill{.x = b.tensor(), .seed = 7, .deviation = 2});
    test::run(RandomFill{.x = c.tensor(), .seed = 8, .deviation = 2});
    a.expect_guards_intact();
    const auto values = test::download(a.tensor()), others = test::download(c.tensor());
    EXPECT_EQ(values, test::download(b.tensor()));
    double mean = 0, square = 0, product = 0, inside = 0;
    for (std::size_t i = 0; i < size; ++i) {
      mean += values[i] / size;
      square += values[i] * values[i] / size;
      product += values[i] * others[i] / size;
      inside += std::fabs(values[i]) < 2 ? 1.0 / size : 0.0;
    }
    // Four standard errors of each.
    EXPECT_NEAR(mean, 0, 4 * 2 / std::sqrt(double{size}));
    EXPECT_NEAR(square, 4, 4 * 4 * std::sqrt(2.0 / size));
    EXPECT_NEAR(product, 0, 4 * 4 / std::sqrt(double{size}));
    EXPECT_NEAR(inside, 0.6827, 4 * 0.4655 / std::sqrt(double{size}));
  }
}

TEST(RandomFill, WordsHaveEveryBit) {
  const test::GuardedTensor words(DType::u32, {4097});
  test::run(RandomFill{.x = words.tensor(), .seed = 1});
  words.expect_guards_intact();
  const auto values = test::device().read<std::uint32_t>(words.tensor());
  for (std::uint32_t bit = 0; bit < 32; ++bit) {
    const auto set = std::count_if(values.begin(), values.end(), [&](std::uint32_t v) { return (v >> bit & 1u) != 0; });
    EXPECT_NEAR(double(set) / 4097, 0.5, 4 * 0.5 / std::sqrt(4097.0)) << bit;
  }
}

}  // namespace
}  // namespace nibble::flat_test
