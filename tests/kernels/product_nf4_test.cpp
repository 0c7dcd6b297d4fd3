#include "nibble/kernels/product_nf4.h"

#include "nibble/base/error.h"
#include "nibble/base/nf4_table.h"
#include "tests/support/gpu_test.h"

#include <cmath>

namespace nibble::product_nf4_test {
namespace {

using test::GuardedTensor;

// A weight (N, K) and the values that it decodes to.
struct TestWeight {
  Nf4 nf4;
  std::vector<float> values;
};

TestWeight make_weight(std::uint32_t n, std::uint32_t k, CodeBook book = CodeBook::nf4) {
  Rng rng(n + k);
  std::vector<std::uint32_t> words(std::size_t{n} * k / 8);
  TestWeight result;
  const auto absmax = test::random_values(std::size_t{n} * k / nf4_block, n);
  for (std::size_t i = 0; i < std::size_t{n} * k; ++i) {
    const std::uint32_t code = rng.below(16), byte = static_cast<std::uint32_t>(i % 8 / 2);
    words[i / 8] |= code << (8 * byte + (i % 2 == 0 ? 4 : 0));
    result.values.push_back(codes_of(book)[code] * absmax[i / nf4_block]);
  }
  result.nf4 = {test::upload_u32(words), test::upload(absmax, {static_cast<std::uint32_t>(absmax.size())}), book};
  return result;
}

struct Shape {
  std::uint32_t m, n, k, rank;
};

// Rows fewer than a tile, beyond one, and many; columns that end within a tile and on its edge; sums of one word and many.
const Shape shapes[] = {{1, 8, 64, 0}, {3, 72, 64, 4}, {16, 128, 256, 8},
                        {37, 200, 192, 12}, {130, 64, 448, 16}, {9, 24, 128, 0}};

void fill(const Tensor& tensor, float value) {
  const std::vector<float> values(tensor.size(), value);
  test::device().write(tensor, std::as_bytes(std::span(values)));
}

// Expects y(M, columns) of x(M, L) and w(column of y, l), and a low-rank term of left(M, R) and right(column of y, r).
template <typename W, typename R>
void expect_product(const std::vector<float>& y, const Shape& s, std::uint32_t columns, std::uint32_t inner,
                    const std::vector<float>& x, W w, const std::vector<float>& left, R right, float scaling, float initial) {
  for (std::uint32_t i = 0; i < s.m; ++i) {
    for (std::uint32_t j = 0; j < columns; ++j) {
      double sum = initial, magnitude = std::fabs(initial);
      const auto add = [&](double term) {
        sum += term;
        magnitude += std::fabs(term);
      };
      for (std::uint32_t l = 0; l < inner; ++l) add(double{x[std::size_t{i} * inner + l]} * w(j, l));
      for (std::uint32_t r = 0; r < s.rank; ++r) add(double{scaling} * left[std::size_t{i} * s.rank + r] * right(j, r));
      // A rounding of each product and each sum in f32, and one of a factor of the term.
      ASSERT_LE(std::fabs(sum - y[std::size_t{i} * columns + j]), (inner + s.rank + 4) * 0x1p-24 * magnitude) << i << ", " << j;
    }
  }
}

class ProductNf4 : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (test::must_skip(nf4_product_fits(test::device(), 8, 64))) GTEST_SKIP() << "The adapter is no processor with vectors of 8.";
  }
};

TEST_P(ProductNf4, NTEqualsTheSum) {
  for (const Shape& s : shapes) {
    SCOPED_TRACE(fmt::format("{} x {} x {}, rank {}", s.m, s.n, s.k, s.rank));
    const auto x = test::random_values(std::size_t{s.m} * s.k, 1), left = test::random_values(std::size_t{s.m} * s.rank, 2),
               right = test::random_values(std::size_t{s.n} * s.rank, 3);
    const TestWeight w = make_weight(s.n, s.k, s.m == 3 ? CodeBook::fp4 : CodeBook::nf4);
    GuardedTensor y(DType::f32, {s.m, s.n});
    if (GetParam()) fill(y.tensor(), 3.0f);
    Nf4Product op{.x = test::upload(x, {s.m, s.k}), .w = w.nf4, .y = y.tensor(), .accumulate = GetParam(), .scaling = 0.75f};
    if (s.rank > 0) op.left = test::upload(left, {s.m, s.rank}), op.right = test::upload(right, {s.n, s.rank});
    gpu::Recorder recorder(test::device());
    record_nt(recorder, op);
    recorder.submit();
    expect_product(test::download(y.tensor()), s, s.n, s.k, x,
                   [&](auto j, auto l) { return w.values[std::size_t{j} * s.k + l]; }, left,
                   [&](auto j, auto r) { return right[std::size_t{j} * s.rank + r]; }, 0.75f, GetParam() ? 3.0f : 0.0f);
    y.expect_guards_intact();
  }
}

TEST_P(ProductNf4, NNEqualsTheSum) {
  for (const Shape& s : shapes) {
    SCOPED_TRACE(fmt::format("{} x {} x {}, rank {}", s.m, s.n, s.k, s.rank));
    const auto x = test::random_values(std::size_t{s.m} * s.n, 1), left = test::random_values(std::size_t{s.m} * s.rank, 2),
               right = test::random_values(std::size_t{s.k} * s.rank, 3);
    const TestWeight w = make_weight(s.n, s.k, s.m == 3 ? CodeBook::fp4 : CodeBook::nf4);
    GuardedTensor y(DType::f32, {s.m, s.k});
    if (GetParam()) fill(y.tensor(), 3.0f);
    Nf4Product op{.x = test::upload(x, {s.m, s.n}), .w = w.nf4, .y = y.tensor(), .accumulate = GetParam(), .scaling = 0.75f};
    if (s.rank > 0) op.left = test::upload(left, {s.m, s.rank}), op.right = test::upload(right, {s.rank, s.k});
    gpu::Recorder recorder(test::device());
    record_nn(recorder, op);
    recorder.submit();
    expect_product(test::download(y.tensor()), s, s.k, s.n, x,
                   [&](auto j, auto l) { return w.values[std::size_t{l} * s.k + j]; }, left,
                   [&](auto j, auto r) { return right[std::size_t{r} * s.k + j]; }, 0.75f, GetParam() ? 3.0f : 0.0f);
    y.expect_guards_intact();
  }
}

INSTANTIATE_TEST_SUITE_P(AccumulateOrNot, ProductNf4, testing::Bool());

TEST(ProductNf4Sizes, OthersAreRefused) {
  auto& device = test::device();
  EXPECT_FALSE(nf4_product_fits(device, 8, 96));
  EXPECT_FALSE(nf4_product_fits(device, 12, 64));
  if (test::must_skip(nf4_product_fits(device, 8, 64))) GTEST_SKIP() << "The adapter is no processor with vectors of 8.";
  const TestWeight w = make_weight(8, 64);
  const Tensor x = device.tensor(DType::f32, {2, 64}, "x"), y = device.tensor(DType::f32, {2, 8}, "y");
  gpu::Recorder recorder(device);
  EXPECT_THROW(record_nt(recorder, {.x = x, .w = w.nf4, .y = x}), Error);
  EXPECT_THROW(record_nt(recorder, {.x = x, .w = make_weight(16, 64).nf4, .y = y}), Error);
  const Tensor left = device.tensor(DType::f32, {2, 6}, "left"), right = device.tensor(DType::f32, {8, 6}, "right");
  EXPECT_THROW(record_nt(recorder, {.x = x, .w = w.nf4, .y = y, .left = left, .right = right}), Error);
}

}  // namespace
}  // namespace nibble::product_nf4_test
