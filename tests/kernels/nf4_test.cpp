#include "nibble/kernels/nf4.h"

#include "nibble/base/error.h"
#include "nibble/base/nf4_table.h"
#include "tests/support/gpu_test.h"

#include <array>
#include <cmath>
#include <tuple>

namespace nibble::nf4_test {
namespace {

using test::GuardedTensor;

struct TestNf4 {
  Nf4 w;
  std::vector<float> values;
};

TestNf4 make_nf4(std::uint32_t n, std::uint32_t k, CodeBook book = CodeBook::nf4) {
  const std::size_t count = std::size_t{n} * k;
  Rng rng(n + k);
  std::vector<std::uint8_t> bytes(count / 2);
  for (auto& byte : bytes) byte = static_cast<std::uint8_t>(rng.below(256));
  auto absmax = test::random_values(count / nf4_block, n);
  for (float& value : absmax) value = std::fabs(value) * 0.1f;
  TestNf4 result;
  for (std::size_t i = 0; i < count; ++i) {
    const unsigned code = i % 2 == 0 ? bytes[i / 2] >> 4 : bytes[i / 2] & 15u;
    result.values.push_back(codes_of(book)[code] * absmax[i / nf4_block]);
  }
  result.w.packed = test::device().tensor<std::uint8_t>(DType::u8, {static_cast<std::uint32_t>(bytes.size())}, bytes, "nf4");
  result.w.absmax = test::upload(absmax, {static_cast<std::uint32_t>(absmax.size())});
  result.w.codes = book;
  return result;
}

TEST(Nf4, DequantizesBitForBitInF32) {
  for (const auto& [n, k] : {std::pair{1u, 64u}, {3u, 64u}, {64u, 5u}, {33u, 192u}, {128u, 256u}, {70'000u, 512u}}) {
    const auto nf4 = make_nf4(n, k);
    GuardedTensor out(DType::f32, {n, k});
    {
      gpu::Recorder recorder(test::device());
      record(recorder, DequantizeNf4{nf4.w, {out.tensor()}});
      recorder.submit();
    }
    EXPECT_EQ(test::download(out.tensor()), nf4.values) << n << " x " << k;
    out.expect_guards_intact();
  }
}

TEST(Nf4, DequantizesFp4BitForBit) {
  const auto fp4 = make_nf4(33, 192, CodeBook::fp4);
  EXPECT_NE(fp4.values, make_nf4(33, 192).values);
  GuardedTensor out(DType::f32, {33, 192});
  gpu::Recorder recorder(test::device());
  record(recorder, DequantizeNf4{fp4.w, {out.tensor()}});
  recorder.submit();
  EXPECT_EQ(test::download(out.tensor()), fp4.values);
}

TEST(Nf4, RoundsToNearestInF16) {
  if (test::must_skip(test::device().info().f16)) GTEST_SKIP() << "The adapter has no f16.";
  for (const auto type : {gpu::AdapterType::software, gpu::AdapterType::discrete}) {
    for (const auto& [scale, rows] : {std::pair{1.0f, 35u}, {0x1p-6f, 35u}, {1.0f, 171u}}) {
      const auto nf4 = make_nf4(rows, 192);
      GuardedTensor out(DType::f16, {rows, 192});
      {
        gpu::Recorder recorder(test::device());
        record(recorder, DequantizeNf4{nf4.w, {out.tensor(), scale}, type});
        recorder.submit();
      }
      auto expected = nf4.values;
      for (float& value : expected) value = f16_to_f32(f32_to_f16(value / scale));
      EXPECT_EQ(test::download(out.tensor()), expected);
      out.expect_guards_intact();
    }
  }
}

TEST(Nf4, DequantizesIntoTiles) {
  if (test::must_skip(test::device().info().f16)) GTEST_SKIP() << "The adapter has no f16.";
  const std::uint32_t rows = 48, columns = 224;
  const auto nf4 = make_nf4(rows, columns);
  auto values = nf4.values, turned = values;
  for (float& value : values) value = f16_to_f32(f32_to_f16(value));
  for (std::size_t i = 0; i < values.size(); ++i) turned[i % columns * rows + i / columns] = values[i];
  for (const std::uint32_t tile : {8u, 16u}) {
    GuardedTensor out(DType::f16, {rows, columns});
    test::run(DequantizeNf4{nf4.w, {.data = out.tensor(), .tile = tile}});
    EXPECT_EQ(test::download(out.tensor()), test::in_tiles(values, columns, tile));
    test::run(DequantizeNf4{nf4.w, {.data = out.tensor(), .tile = tile, .turned = true}});
    EXPECT_EQ(test::download(out.tensor()), test::in_tiles(turned, rows, tile));
    out.expect_guards_intact();
  }
  const auto uneven = make_nf4(24, 64);
  gpu::Recorder recorder(test::device());
  const Tensor out = test::device().tensor(DType::f16, {24, 64}, "out");
  EXPECT_THROW(record(recorder, DequantizeNf4{uneven.w, {.data = out, .tile = 16}}), Error);
  const auto narrow = make_nf4(64, 16);
  const Tensor narrow_out = test::device().tensor(DType::f16, {64, 16}, "out");
  record(recorder, DequantizeNf4{narrow.w, {.data = narrow_out, .tile = 16}});
  EXPECT_THROW(record(recorder, DequantizeNf4{narrow.w, {.data = narrow_out, .tile = 16, .turned = true}}), Error);
}

// Sums of whole numbers, which have no rounding.
struct Rows {
  static constexpr std::uint32_t parts = 11, rows = 50, padded_rows = 64, width = 16, padded_width = 32, segments = 3;
  static constexpr std::array<std::uint32_t, 4> starts{0, 3, 3, parts};
  std::vector<float> partial = whole_numbers();
  GuardedTensor h{DType::f16, {rows, segments * width}};

  static std::vector<float> whole_numbers() {
    std::vector<float> values(std::size_t{parts} * padded_rows * padded_width);
    Rng rng(9);
    for (float& value : values) value = static_cast<float>(rng.below(64)) - 20;
    return values;
  }
  LoraRowsSum sum() const {
    return {.partial = test::upload(partial, {parts * padded_rows, padded_width}), .h = h.tensor(), .starts = starts, .width = width,
            .padded_width = padded_width, .padded_rows = padded_rows, .factor = 0.25f};
  }
  std::vector<float> expected() const {
    std::vector<float> expected;
    for (std::size_t row = 0; row < rows; ++row) {
      for (std::size_t column = 0; column < segments * width; ++column) {
        float total = 0;
        for (std::size_t part = starts[column / width]; part < starts[column / width + 1]; ++part) {
          total += partial[(part * padded_rows + row) * padded_width + column % width];
        }
        expected.push_back(total * 0.25f);
      }
    }
    return expected;
  }
};

TEST(LoraRowsSum, AddsUpPartsOfSegments) {
  if (test::must_skip(test::device().info().f16)) GTEST_SKIP() << "The adapter has no f16.";
  const Rows rows;
  test::run(rows.sum());
  EXPECT_EQ(test::download(rows.h.tensor()), rows.expected());
  rows.h.expect_guards_intact();
}

// Every kernel that decodes.
TEST(Nf4, DequantizesWithRowsAddedUpBeside) {
  if (test::must_skip(test::device().info().f16)) GTEST_SKIP() << "The adapter has no f16.";
  const std::uint32_t n = 176, k = 192;
  const auto nf4 = make_nf4(n, k);
  const auto decode = [&](DType dtype, const Weight& form, gpu::AdapterType type, const LoraRowsSum* rows_sum) {
    GuardedTensor out(dtype, {n, k});
    Weight weight = form;
    weight.data = out.tensor();
    test::run(DequantizeNf4{.w = nf4.w, .out = weight, .tiles_for = type, .rows_sum = rows_sum});
    out.expect_guards_intact();
    return test::download(out.tensor());
  };
  constexpr auto software = gpu::AdapterType::software, discrete = gpu::AdapterType::discrete;
  for (const auto& [dtype, form, type] : {std::tuple{DType::f16, Weight{}, software}, {DType::f32, Weight{}, software}, {DType::f16, Weight{}, discrete},
                                          {DType::f16, Weight{.tile = 16}, discrete}, {DType::f16, Weight{.tile = 8, .turned = true}, discrete}}) {
    SCOPED_TRACE(fmt::format("{}, tiles of {}, software {}", name_of(dtype), form.tile, type == software));
    const Rows rows;
    const LoraRowsSum sum = rows.sum();
    EXPECT_EQ(decode(dtype, form, type, &sum), decode(dtype, form, type, nullptr));
    EXPECT_EQ(test::download(rows.h.tensor()), rows.expected());
    rows.h.expect_guards_intact();
  }
}

TEST(Nf4, WrongSizesAreRefused) {
  const auto nf4 = make_nf4(2, 64);
  GuardedTensor out(DType::f32, {3, 64}), odd(DType::f32, {2, 63});
  gpu::Recorder recorder(test::device());
  EXPECT_THROW(record(recorder, DequantizeNf4{nf4.w, {out.tensor()}}), Error);
  EXPECT_THROW(record(recorder, DequantizeNf4{nf4.w, {odd.tensor()}}), Error);
}

}  // namespace
}  // namespace nibble::nf4_test
