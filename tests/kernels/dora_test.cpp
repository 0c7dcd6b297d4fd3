#include "nibble/kernels/dora.h"

#include "nibble/base/error.h"
#include "nibble/base/nf4_table.h"
#include "tests/support/guarded_operand.h"

#include <cmath>

namespace nibble::dora_test {
namespace {

// A projection with an adapter, and the norms of its rows in double. The first row is zeros.
struct Case {
  std::uint32_t out, in, rank;
  float scaling = 0.75f;
  std::vector<float> a, b, magnitude, absmax;
  std::vector<double> norm;
  Nf4 w;

  Case(std::uint32_t n, std::uint32_t k, std::uint32_t r) : out(n), in(k), rank(r) {
    const std::size_t count = std::size_t{n} * k;
    a = test::random_values(std::size_t{r} * k, 1), b = test::random_values(std::size_t{n} * r, 2), magnitude = test::random_values(n, 3, 4.0f);
    absmax = test::random_values(count / nf4_block, 4);
    std::fill_n(absmax.begin(), k / nf4_block, 0.0f);
    std::fill_n(b.begin(), r, 0.0f);
    Rng rng(5);
    std::vector<std::uint8_t> bytes(count / 2);
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(rng.next_u32());
    for (std::size_t row = 0; row < n; ++row) {
      double sum = 0;
      for (std::size_t column = 0; column < k; ++column) {
        const std::size_t i = row * k + column;
        double value = double{nf4_codes[i % 2 == 0 ? bytes[i / 2] >> 4 : bytes[i / 2] & 15]} * absmax[i / nf4_block];
        for (std::size_t j = 0; j < r; ++j) value += double{scaling} * b[row * r + j] * a[j * k + column];
        sum += value * value;
      }
      norm.push_back(std::sqrt(sum));
    }
    w.packed = test::device().tensor<std::uint8_t>(DType::u8, {static_cast<std::uint32_t>(bytes.size())}, bytes, "nf4");
    w.absmax = test::upload(absmax, {static_cast<std::uint32_t>(absmax.size())});
  }
  double gain(std::size_t row) const { return norm[row] == 0 ? 0 : magnitude[row] / norm[row]; }
};

void expect_near(const std::vector<float>& values, std::size_t i, double expected) {
  EXPECT_NEAR(values[i], expected, 4e-6 * std::fabs(expected) + 1e-30) << i;  // sums of up to 1344 squares in f32
}

TEST(Dora, GainsEqualTheReference) {
  for (const auto& [n, k, r] : {std::array{1u, 64u, 1u}, {7u, 192u, 3u}, {66u, 1344u, 20u}}) {
    SCOPED_TRACE(fmt::format("{} x {} of rank {}", n, k, r));
    const Case c(n, k, r);
    const auto blocks = static_cast<std::uint32_t>(c.absmax.size());
    const Tensor a = test::upload(c.a, {r, k}), b = test::upload(c.b, {n, r}), magnitude = test::upload(c.magnitude, {n});
    const test::GuardedTensor norm(DType::f32, {n}), gain(DType::f32, {n}), absmax(DType::f32, {blocks}), b_read(DType::f32, {n, r});
    test::run(DoraNorm{.w = c.w, .a = a, .b = b, .scaling = c.scaling, .norm = norm.tensor()});
    test::run(DoraGain{.w = c.w, .a = a, .b = b, .magnitude = magnitude, .scaling = c.scaling, .absmax = absmax.tensor(),
                       .b_read = b_read.tensor(), .gain = gain.tensor()});
    const auto norms = test::download(norm.tensor()), gains = test::download(gain.tensor()), scales = test::download(absmax.tensor()),
               read = test::download(b_read.tensor());
    for (std::size_t row = 0; row < n; ++row) {
      expect_near(norms, row, c.norm[row]);
      expect_near(gains, row, c.gain(row));
      for (std::size_t j = 0; j < r; ++j) expect_near(read, row * r + j, c.gain(row) * c.b[row * r + j]);
      for (std::size_t j = row * k / nf4_block; j < (row + 1) * k / nf4_block; ++j) expect_near(scales, j, c.gain(row) * c.absmax[j]);
    }
    for (const auto* guarded : {&norm, &gain, &absmax, &b_read}) guarded->expect_guards_intact();
  }
}

TEST(Dora, GradientOfBIsAdded) {
  constexpr std::uint32_t n = 37, r = 5;
  const auto read = test::random_values(n * r, 1), gains = test::random_values(n, 2), before = test::random_values(n * r, 3);
  const test::GuardedTensor db(DType::f32, {n, r});
  test::device().write(db.tensor(), std::as_bytes(std::span(before)));
  test::run(DoraGradientB{.db_read = test::upload(read, {n, r}), .gain = test::upload(gains, {n}), .db = db.tensor()});
  const auto after = test::download(db.tensor());
  for (std::size_t i = 0; i < after.size(); ++i) EXPECT_NEAR(after[i], before[i] + double{gains[i / r]} * read[i], 1e-6);
  db.expect_guards_intact();
}

TEST(Dora, GradientOfMagnitudesIsAdded) {
  constexpr std::uint32_t first = 8;
  for (const ProductPath path : test::product_paths()) {
    for (const auto& [rows, n, wide] : {std::array{1u, 1u, 12u}, {13u, 33u, 48u}, {300u, 70u, 80u}}) {
      for (const bool biased : {false, true}) {
        SCOPED_TRACE(fmt::format("{} {} rows, {} of {} columns{}", test::name_of(path), rows, n, wide, biased ? ", bias" : ""));
        const Operand dy = test::upload_operand(test::random_values(std::size_t{rows} * wide, 1), rows, wide, path);
        const Operand y = test::upload_operand(test::random_values(std::size_t{rows} * (wide + 8), 2, 9.0f), rows, wide + 8, path);
        const auto dy_held = test::download(dy), y_held = test::download(y), bias = test::random_values(n + 3, 3), before = test::random_values(n, 4);
        auto magnitude = test::random_values(n, 5, 2.0f);
        magnitude[n - 1] = 0;
        const test::GuardedTensor d_magnitude(DType::f32, {n});
        test::device().write(d_magnitude.tensor(), std::as_bytes(std::span(before)));
        test::run(DoraGradientMagnitude{.dy = dy, .y = y, .first = first, .bias = biased ? test::upload(bias, {n + 3}) : Tensor{}, .bias_first = 3,
                                        .magnitude = test::upload(magnitude, {n}), .d_magnitude = d_magnitude.tensor()});
        const auto after = test::download(d_magnitude.tensor());
        for (std::size_t i = 0; i < n; ++i) {
          double sum = 0, size = 0;
          for (std::size_t t = 0; t < rows; ++t) {
            const double term = double{dy_held[t * wide + first + i]} * (y_held[t * (wide + 8) + first + i] - (biased ? bias[3 + i] : 0.0f));
            sum += term, size += std::fabs(term);
          }
          const double added = magnitude[i] == 0 ? 0 : sum / magnitude[i];
          EXPECT_NEAR(after[i], before[i] + added, magnitude[i] == 0 ? 0 : 1e-6 * size / std::fabs(magnitude[i]) + 1e-6) << i;
        }
        d_magnitude.expect_guards_intact();
      }
    }
  }
}

TEST(Dora, RefusesWhatDoesNotFit) {
  gpu::Recorder recorder(test::device());
  const Case c(4, 64, 2);
  const Tensor a = test::upload(c.a, {2, 64}), b = test::upload(c.b, {4, 2}), norm = test::upload(c.magnitude, {4});
  EXPECT_NO_THROW(record(recorder, DoraNorm{.w = c.w, .a = a, .b = b, .norm = norm}));
  EXPECT_THROW(record(recorder, DoraNorm{.w = c.w, .a = a, .b = a, .norm = norm}), Error);
  EXPECT_THROW(record(recorder, DoraNorm{.w = {c.w.packed, norm.rows(0, 2)}, .a = a, .b = b, .norm = norm}), Error);
  // Blocks that go on in the next row.
  EXPECT_THROW(record(recorder, DoraNorm{.w = c.w, .a = test::upload(c.a, {4, 32}), .b = test::upload(c.magnitude, {1, 4}), .norm = norm}), Error);
}

}  // namespace
}  // namespace nibble::dora_test
