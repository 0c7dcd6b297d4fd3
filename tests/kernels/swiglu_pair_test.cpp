#include "nibble/kernels/swiglu_pair.h"

#include "nibble/base/half.h"
#include "tests/support/gpu_test.h"

#include <cmath>

namespace nibble::swiglu_pair_test {
namespace {

double sigmoid(double g) { return 1.0 / (1.0 + std::exp(-g)); }

// f16 data of rows whose scales lie far apart, and the values that they stand for.
struct Made {
  Operand operand;
  std::vector<double> values;
  std::vector<float> scale;
};

Made make(std::uint32_t rows, std::uint32_t columns, std::uint64_t seed, float spread, int exponent) {
  const auto random = test::random_values(std::size_t{rows} * columns, seed, spread);
  std::vector<std::uint16_t> data;
  for (const float value : random) data.push_back(f32_to_f16(value));
  Made made;
  for (std::uint32_t row = 0; row < rows; ++row) {
    made.scale.push_back(std::ldexp(1.0f, exponent + static_cast<int>(row % 3) * 5));
    for (std::uint32_t c = 0; c < columns; ++c) {
      made.values.push_back(double{f16_to_f32(data[std::size_t{row} * columns + c])} * made.scale.back());
    }
  }
  made.operand.data = test::device().tensor<std::uint16_t>(DType::f16, {rows, columns}, std::span<const std::uint16_t>(data), "data");
  made.operand.scale = test::device().tensor<float>(DType::f32, {rows}, std::span<const float>(made.scale), "scale");
  return made;
}

// f16 rounds to 11 bits, and below 2^-14 to multiples of 2^-24; both times the row's scale.
void expect_near(double got, double expected, double scale, double exp_error, const std::string& what) {
  EXPECT_LE(std::abs(got - expected), std::abs(expected) * (0x1p-11 + exp_error) + scale * 0x1p-25) << what;
}

// The last rows are longer than lanes keep.
TEST(SwiGluPair, EqualsTheReference) {
  if (test::must_skip(test::device().info().f16)) GTEST_SKIP() << "The adapter has no f16.";
  for (const auto& [rows, columns] : {std::pair{1u, 8u}, {5u, 24u}, {37u, 264u}, {2u, 40960u}}) {
    SCOPED_TRACE(std::to_string(rows) + "x" + std::to_string(columns));
    const Made gate_up = make(rows, 2 * columns, 1, 900.0f, -8), dh = make(rows, columns, 2, 3000.0f, -30);
    const test::GuardedTensor h(DType::f16, {rows, columns}), h_scale(DType::f32, {rows});
    const test::GuardedTensor d(DType::f16, {rows, 2 * columns}), d_scale(DType::f32, {rows});
    test::run(SwiGluPair{.gate_up = gate_up.operand, .h = {h.tensor(), h_scale.tensor()}});
    test::run(SwiGluPairBackward{.dh = dh.operand, .gate_up = gate_up.operand, .d_gate_up = {d.tensor(), d_scale.tensor()}});
    const test::GuardedTensor h_again(DType::f16, {rows, columns}), h_again_scale(DType::f32, {rows});
    const Operand d_again = make_operand(test::device(), ProductPath::f16, rows, 2 * columns, "d");
    test::run(SwiGluPairBackward{.dh = dh.operand, .gate_up = gate_up.operand, .d_gate_up = d_again,
                                 .h = {h_again.tensor(), h_again_scale.tensor()}});
    EXPECT_EQ(test::download(h_again.tensor()), test::download(h.tensor()));
    EXPECT_EQ(test::download(h_again_scale.tensor()), test::download(h_scale.tensor()));
    EXPECT_EQ(test::download(d_again.data), test::download(d.tensor()));
    EXPECT_EQ(test::download(d_again.scale), test::download(d_scale.tensor()));
    h_again.expect_guards_intact();
    h_again_scale.expect_guards_intact();
    const auto got = test::download(h.tensor()), got_d = test::download(d.tensor());
    const auto scale = test::download(h_scale.tensor()), scale_d = test::download(d_scale.tensor());
    for (std::uint32_t row = 0; row < rows; ++row) {
      for (std::uint32_t c = 0; c < columns; ++c) {
        const std::size_t at = std::size_t{row} * columns + c, gate_at = 2 * std::size_t{row} * columns + c;
        const double g = gate_up.values[gate_at], u = gate_up.values[gate_at + columns], s = sigmoid(g), up = dh.values[at];
        // WGSL allows exp(x) an error of 3 + 2|x| units in the last place; 1 + g (1 - s) cancels near g = -1.28.
        const double error = 4000 * 0x1p-23, where = std::abs(up * u) * 0x1p-20;
        const std::string what = fmt::format("row {} column {} gate {} up {}", row, c, g, u);
        expect_near(double{got[at]} * scale[row], g * s * u, scale[row], error, what);
        expect_near(double{got_d[gate_at + columns]} * scale_d[row], up * g * s, scale_d[row], error, what);
        const double slope = up * u * (s + g * s * (1 - s));
        EXPECT_LE(std::abs(double{got_d[gate_at]} * scale_d[row] - slope),
                  std::abs(slope) * (0x1p-11 + error) + scale_d[row] * 0x1p-25 + where) << what;
      }
    }
    h.expect_guards_intact();
    h_scale.expect_guards_intact();
    d.expect_guards_intact();
    d_scale.expect_guards_intact();
  }
}

// Rows that are tiny, or whose largest value is far above the others, fill f16's range: what is stored does not fade.
TEST(SwiGluPair, RowsFillTheRange) {
  if (test::must_skip(test::device().info().f16)) GTEST_SKIP() << "The adapter has no f16.";
  constexpr std::uint32_t rows = 4, columns = 64;
  Made gate_up = make(rows, 2 * columns, 3, 0.01f, 0), dh = make(rows, columns, 4, 0.01f, -20);
  const Operand h = make_operand(test::device(), ProductPath::f16, rows, columns, "h");
  const Operand d = make_operand(test::device(), ProductPath::f16, rows, 2 * columns, "d");
  test::run(SwiGluPair{.gate_up = gate_up.operand, .h = h});
  test::run(SwiGluPairBackward{.dh = dh.operand, .gate_up = gate_up.operand, .d_gate_up = d});
  for (const Operand& written : {h, d}) {
    const auto data = test::download(written.data);
    const std::size_t width = data.size() / rows;
    for (std::uint32_t row = 0; row < rows; ++row) {
      float largest = 0;
      for (std::size_t i = row * width; i < (row + 1) * width; ++i) largest = std::max(largest, std::fabs(data[i]));
      EXPECT_GE(largest, 0x1p13f) << "row " << row;
      EXPECT_LE(largest, 0x1p14f) << "row " << row;
    }
  }
}

// The largest f16 values in all inputs leave every result finite.
TEST(SwiGluPair, NeverOverflows) {
  if (test::must_skip(test::device().info().f16)) GTEST_SKIP() << "The adapter has no f16.";
  const std::vector<std::uint16_t> most(32, f32_to_f16(65504.0f));
  std::vector<std::uint16_t> least = most;
  for (std::size_t i = 0; i < 8; ++i) least[i] = f32_to_f16(-65504.0f);
  const std::vector<float> ones(2, 1.0f);
  const Operand h = make_operand(test::device(), ProductPath::f16, 2, 8, "h"), d = make_operand(test::device(), ProductPath::f16, 2, 16, "d");
  const Tensor scale = test::device().tensor<float>(DType::f32, {2}, std::span<const float>(ones), "scale");
  for (const auto& bits : {most, least}) {
    const Operand gate_up{test::device().tensor<std::uint16_t>(DType::f16, {2, 16}, std::span<const std::uint16_t>(bits), "gate_up"), scale};
    const Operand dh{test::device().tensor<std::uint16_t>(DType::f16, {2, 8}, std::span<const std::uint16_t>(most).first(16), "dh"), scale};
    test::run(SwiGluPair{.gate_up = gate_up, .h = h});
    test::run(SwiGluPairBackward{.dh = dh, .gate_up = gate_up, .d_gate_up = d});
    for (const float value : test::download(h)) EXPECT_TRUE(std::isfinite(value));
    for (const float value : test::download(d)) EXPECT_TRUE(std::isfinite(value));
  }
}

}  // namespace
}  // namespace nibble::swiglu_pair_test
