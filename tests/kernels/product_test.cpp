#include "nibble/kernels/product.h"

#include "nibble/base/error.h"
#include "nibble/kernels/product_matrix.h"
#include "nibble/kernels/product_tiled.h"
#include "nibble/kernels/product_vec.h"
#include "tests/support/gpu_test.h"

#include <cmath>

namespace nibble::product_test {
namespace {

using test::GuardedTensor;

struct Shape {
  std::uint32_t m, n, k;
};

const Shape shapes[] = {{1, 1, 1},    {3, 5, 7},      {17, 33, 65},  {16, 32, 64},  {200, 128, 256}, {65, 130, 36},
                        {129, 257, 8}, {31, 515, 20}, {7, 64, 1030}, {130, 72, 264}};

// A weight with a tensor-wide scale, as the path stores it, and the values that it then holds.
struct TestWeight {
  Weight weight;
  std::vector<float> values;
};

TestWeight make_weight(std::vector<float> values, std::uint32_t n, std::uint32_t k, ProductPath path) {
  if (path == ProductPath::f32) return {{test::upload(values, {n, k})}, values};
  const float scale = 0.25f;
  for (float& value : values) value /= scale;
  Weight weight{test::upload(values, {n, k}, DType::f16), scale};
  values = test::download(weight.data);
  for (float& value : values) value *= scale;
  return {weight, values};
}

// Sums in f32 of `terms` products of exact operands: |error| <= terms * 2^-24 * sum |a b| at worst, about its root on
// average. The products of rounded operands are compared, so the operands' own rounding does not enter.
void expect_close(const std::vector<float>& got, const std::vector<double>& expected, const std::vector<double>& magnitude,
                  std::uint32_t terms) {
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double bound = (terms + 4) * 0x1p-24 * magnitude[i] + 1e-30;
    ASSERT_LE(std::fabs(got[i] - expected[i]), bound) << "element " << i;
  }
}

// y(i, j) = initial + sum over l of a(i, l) * b(l, j), for elements given by functions.
template <typename A, typename B>
void reference(std::uint32_t rows, std::uint32_t columns, std::uint32_t inner, A a, B b, float initial,
               std::vector<double>& value, std::vector<double>& magnitude) {
  value.assign(std::size_t{rows} * columns, initial);
  magnitude.assign(value.size(), std::fabs(initial));
  for (std::uint32_t i = 0; i < rows; ++i) {
    for (std::uint32_t l = 0; l < inner; ++l) {
      const double factor = a(i, l);
      for (std::uint32_t j = 0; j < columns; ++j) {
        const double term = factor * b(l, j);
        value[std::size_t{i} * columns + j] += term;
        magnitude[std::size_t{i} * columns + j] += std::fabs(term);
      }
    }
  }
}

void fill(const Tensor& tensor, float value) {
  const std::vector<float> values(tensor.size(), value);
  test::device().write(tensor, std::as_bytes(std::span(values)));
}

class Product : public testing::TestWithParam<ProductPath> {};

TEST_P(Product, NTEqualsTheSumAtEverySize) {
  for (const auto [m, n, k] : shapes) {
    for (const bool accumulate : {false, true}) {
      SCOPED_TRACE(fmt::format("{} x {} x {} accumulate {}", m, n, k, accumulate));
      auto values = test::random_values(std::size_t{m} * k, m + n);
      for (std::uint32_t c = 0; c < k; ++c) values[c] *= 1e6f;  // one row beyond f16's range
      const Operand x = test::upload_operand(values, m, k, GetParam());
      const auto a = test::download(x);
      const auto w = make_weight(test::random_values(std::size_t{n} * k, n + k), n, k, GetParam());
      GuardedTensor y(DType::f32, {m, n});
      if (accumulate) fill(y.tensor(), 3.0f);
      {
        gpu::Recorder recorder(test::device());
        record(recorder, ProductNT{GetParam(), x, w.weight, y.tensor(), accumulate});
        recorder.submit();
      }
      std::vector<double> expected, magnitude;
      reference(m, n, k, [&](auto i, auto l) { return a[i * k + l]; }, [&](auto l, auto j) { return w.values[j * k + l]; },
                accumulate ? 3.0f : 0.0f, expected, magnitude);
      expect_close(test::download(y.tensor()), expected, magnitude, k);
      y.expect_guards_intact();
    }
  }
}

TEST_P(Product, NNEqualsTheSumAtEverySize) {
  for (const auto [m, n, k] : shapes) {
    for (const bool accumulate : {false, true}) {
      SCOPED_TRACE(fmt::format("{} x {} x {} accumulate {}", m, n, k, accumulate));
      auto values = test::random_values(std::size_t{m} * n, m + n);
      for (std::uint32_t c = 0; c < n; ++c) values[c] *= 1e6f;
      const Operand x = test::upload_operand(values, m, n, GetParam());
      const auto a = test::download(x);
      const auto w = make_weight(test::random_values(std::size_t{n} * k, n + k), n, k, GetParam());
      GuardedTensor y(DType::f32, {m, k});
      if (accumulate) fill(y.tensor(), 3.0f);
      {
        gpu::Recorder recorder(test::device());
        record(recorder, ProductNN{GetParam(), x, w.weight, y.tensor(), accumulate});
        recorder.submit();
      }
      std::vector<double> expected, magnitude;
      reference(m, k, n, [&](auto i, auto l) { return a[i * n + l]; }, [&](auto l, auto j) { return w.values[l * k + j]; },
                accumulate ? 3.0f : 0.0f, expected, magnitude);
      expect_close(test::download(y.tensor()), expected, magnitude, n);
      y.expect_guards_intact();
    }
  }
}

TEST_P(Product, TNAddsTheSumAtEverySize) {
  for (const auto [n, k, m] : shapes) {
    SCOPED_TRACE(fmt::format("{} x {} x {}", m, n, k));
    const Operand x = test::upload_operand(test::random_values(std::size_t{m} * n, m + n), m, n, GetParam());
    const Operand w = test::upload_operand(test::random_values(std::size_t{m} * k, n + k), m, k, GetParam());
    const auto a = test::download(x), b = test::download(w);
    GuardedTensor y(DType::f32, {n, k});
    fill(y.tensor(), 3.0f);
    const auto scratch_size = static_cast<std::uint32_t>(product_tn_scratch(test::device(), m, n, k));
    const Tensor scratch = scratch_size ? test::device().tensor(DType::f32, {scratch_size}, "scratch") : Tensor{};
    {
      gpu::Recorder recorder(test::device());
      record(recorder, ProductTN{x, w, y.tensor(), scratch});
      recorder.submit();
    }
    std::vector<double> expected, magnitude;
    reference(n, k, m, [&](auto i, auto l) { return a[l * n + i]; }, [&](auto l, auto j) { return b[l * k + j]; }, 3.0f,
              expected, magnitude);
    expect_close(test::download(y.tensor()), expected, magnitude, m);
    y.expect_guards_intact();
  }
}

TEST_P(Product, FewRowsEqualTheSum) {
  for (const std::uint32_t m : {1u, 5u, 8u}) {
    for (const auto& [n, k] : {std::pair{1u, 8u}, {35u, 264u}, {130u, 1032u}}) {
      SCOPED_TRACE(fmt::format("{} x {} x {}", m, n, k));
      const Operand x = test::upload_operand(test::random_values(std::size_t{m} * k, 2), m, k, GetParam());
      const auto a = test::download(x);
      const auto w = make_weight(test::random_values(std::size_t{n} * k, 3), n, k, GetParam());
      GuardedTensor y(DType::f32, {m, n});
      fill(y.tensor(), 3.0f);
      {
        gpu::Recorder recorder(test::device());
        record(recorder, DenseVec{.x = x, .w = w.weight, .y = y.tensor(), .accumulate = true});
        recorder.submit();
      }
      std::vector<double> expected, magnitude;
      reference(m, n, k, [&](auto i, auto l) { return a[i * k + l]; }, [&](auto l, auto j) { return w.values[j * k + l]; }, 3.0f,
                expected, magnitude);
      expect_close(test::download(y.tensor()), expected, magnitude, k);
      y.expect_guards_intact();
    }
  }
}

// 70,000 outputs of 1,024 are 143 MB in f16 and 287 MB in f32: more than the software adapter binds at once.
TEST_P(Product, WeightsLargerThanABinding) {
  const std::uint32_t n = 70'000, k = 1024, m = 2;
  const DType dtype = operand_dtype(GetParam());
  std::vector<float> row(std::size_t{n} * k);
  for (std::size_t i = 0; i < row.size(); ++i) row[i] = static_cast<float>((i * 7 + i / k) % 5) - 2.0f;
  const Weight w{test::upload(row, {n, k}, dtype)};
  const auto values = test::random_values(std::size_t{m} * k, 1);
  const Operand x = test::upload_operand(values, m, k, GetParam());
  const auto a = test::download(x);
  GuardedTensor y(DType::f32, {m, n});
  {
    gpu::Recorder recorder(test::device());
    record(recorder, ProductNT{GetParam(), x, w, y.tensor()});
    recorder.submit();
  }
  const auto got = test::download(y.tensor());
  for (std::uint32_t j = 0; j < n; j += 997) {
    double expected = 0, magnitude = 0;
    for (std::uint32_t l = 0; l < k; ++l) {
      expected += double{a[k + l]} * row[std::size_t{j} * k + l];
      magnitude += std::fabs(double{a[k + l]} * row[std::size_t{j} * k + l]);
    }
    ASSERT_NEAR(got[std::size_t{n} + j], expected, k * 0x1p-24 * magnitude) << j;
  }
  y.expect_guards_intact();

  const auto up = test::random_values(std::size_t{m} * n, 2);
  const Operand dy = test::upload_operand(up, m, n, GetParam());
  const auto g = test::download(dy);
  GuardedTensor dx(DType::f32, {m, k});
  {
    gpu::Recorder recorder(test::device());
    record(recorder, ProductNN{GetParam(), dy, w, dx.tensor()});
    recorder.submit();
  }
  const auto back = test::download(dx.tensor());
  for (std::uint32_t c = 0; c < k; c += 101) {
    double expected = 0, magnitude = 0;
    for (std::uint32_t j = 0; j < n; ++j) {
      expected += double{g[n + j]} * row[std::size_t{j} * k + c];
      magnitude += std::fabs(double{g[n + j]} * row[std::size_t{j} * k + c]);
    }
    ASSERT_NEAR(back[k + c], expected, n * 0x1p-24 * magnitude) << c;
  }
  dx.expect_guards_intact();
}

// 9,000 rows of 4,096 are 147 MB in f32: rows of y (NT) and of x (NN, TN) go in slices.
TEST_P(Product, RowsLargerThanABinding) {
  const std::uint32_t m = 9000, n = 4096, k = 8;
  const Operand x = test::upload_operand(test::random_values(std::size_t{m} * k, 1), m, k, GetParam());
  const Operand dy = test::upload_operand(test::random_values(std::size_t{m} * n, 2), m, n, GetParam());
  const auto w = make_weight(test::random_values(std::size_t{n} * k, 3), n, k, GetParam());
  const auto a = test::download(x), g = test::download(dy);
  GuardedTensor y(DType::f32, {m, n}), dx(DType::f32, {m, k}), dw(DType::f32, {n, k});
  fill(dw.tensor(), 0.0f);
  const auto scratch_size = static_cast<std::uint32_t>(product_tn_scratch(test::device(), m, n, k));
  const Tensor scratch = scratch_size ? test::device().tensor(DType::f32, {scratch_size}, "scratch") : Tensor{};
  {
    gpu::Recorder recorder(test::device());
    record(recorder, ProductNT{GetParam(), x, w.weight, y.tensor()});
    record(recorder, ProductNN{GetParam(), dy, w.weight, dx.tensor()});
    record(recorder, ProductTN{dy, x, dw.tensor(), scratch});
    recorder.submit();
  }
  const auto got_y = test::download(y.tensor()), got_dx = test::download(dx.tensor()), got_dw = test::download(dw.tensor());
  const auto expect_sum = [](float got, std::uint32_t terms, const auto& term) {
    double sum = 0, magnitude = 0;
    for (std::uint32_t t = 0; t < terms; ++t) {
      sum += term(t);
      magnitude += std::fabs(term(t));
    }
    EXPECT_NEAR(got, sum, (terms + 4) * 0x1p-24 * magnitude);
  };
  for (std::uint32_t i = 0; i < m; i += 271) {
    const std::uint32_t j = i * 37 % n, c = i % k;
    expect_sum(got_y[std::size_t{i} * n + j], k, [&](auto l) { return double{a[i * k + l]} * w.values[j * k + l]; });
    expect_sum(got_dx[i * k + c], n, [&](auto l) { return double{g[std::size_t{i} * n + l]} * w.values[l * k + c]; });
    expect_sum(got_dw[j * k + c], m, [&](auto l) { return double{g[std::size_t{l} * n + j]} * a[l * k + c]; });
  }
  for (const auto* output : {&y, &dx, &dw}) output->expect_guards_intact();
}

// The tiles that GPUs get, wide and as narrow as a LoRA's rank.
TEST_P(Product, TilesOfGpusEqualTheSum) {
  for (const auto [m, n, k] : {Shape{70, 130, 36}, Shape{37, 16, 300}, Shape{5, 3, 257}, Shape{33, 260, 16}, Shape{19, 40, 512}, Shape{75, 132, 204}, Shape{259, 300, 8},
                              Shape{260, 64, 388}, Shape{37, 20, 1028}, Shape{130, 260, 60}}) {
    SCOPED_TRACE(fmt::format("{} x {} x {}", m, n, k));
    const Operand x = test::upload_operand(test::random_values(std::size_t{m} * k, 2), m, k, GetParam());
    const Operand dy = test::upload_operand(test::random_values(std::size_t{m} * n, 3), m, n, GetParam());
    const auto w = make_weight(test::random_values(std::size_t{n} * k, 1), n, k, GetParam());
    const auto a = test::download(x), g = test::download(dy);
    GuardedTensor y(DType::f32, {m, n}), dx(DType::f32, {m, k}), dw(DType::f32, {n, k});
    fill(dw.tensor(), 3.0f);
    const auto type = gpu::AdapterType::discrete;
    const auto scratch_size = static_cast<std::uint32_t>(tn_scratch_size(type, m, n, k));
    const Tensor scratch = scratch_size ? test::device().tensor(DType::f32, {scratch_size}, "scratch") : Tensor{};
    const Operand weight{w.weight.data, {}};
    {
      gpu::Recorder recorder(test::device());
      record_nt(recorder, {.x = x, .w = weight, .y = y.tensor(), .scale = w.weight.scale, .tiles_for = type});
      record_nn(recorder, {.x = dy, .w = weight, .y = dx.tensor(), .scale = w.weight.scale, .tiles_for = type});
      record_tn(recorder, {.x = dy, .w = x, .y = dw.tensor(), .scratch = scratch, .tiles_for = type});
      recorder.submit();
    }
    std::vector<double> expected, magnitude;
    reference(m, n, k, [&](auto i, auto l) { return a[i * k + l]; }, [&](auto l, auto j) { return w.values[j * k + l]; }, 0.0f,
              expected, magnitude);
    expect_close(test::download(y.tensor()), expected, magnitude, k);
    reference(m, k, n, [&](auto i, auto l) { return g[i * n + l]; }, [&](auto l, auto j) { return w.values[l * k + j]; }, 0.0f,
              expected, magnitude);
    expect_close(test::download(dx.tensor()), expected, magnitude, n);
    reference(n, k, m, [&](auto i, auto l) { return g[l * n + i]; }, [&](auto l, auto j) { return a[l * k + j]; }, 3.0f, expected,
              magnitude);
    expect_close(test::download(dw.tensor()), expected, magnitude, m);
    for (const auto* output : {&y, &dx, &dw}) output->expect_guards_intact();
  }
}

TEST_P(Product, PlusIsAddedFromAnotherTensor) {
  const std::uint32_t m = 19, n = 40, k = 24;
  const Operand x = test::upload_operand(test::random_values(m * k, 2), m, k, GetParam());
  const Operand dy = test::upload_operand(test::random_values(m * n, 3), m, n, GetParam());
  const auto w = make_weight(test::random_values(n * k, 1), n, k, GetParam());
  const auto a = test::download(x), g = test::download(dy);
  const auto fives = [&](std::uint32_t columns) { return test::upload(std::vector<float>(m * columns, 5.0f), {m, columns}); };
  GuardedTensor y(DType::f32, {m, n}), dx(DType::f32, {m, k});
  test::run(ProductNT{.path = GetParam(), .x = x, .w = w.weight, .y = y.tensor(), .plus = fives(n)});
  test::run(ProductNN{.path = GetParam(), .x = dy, .w = w.weight, .y = dx.tensor(), .plus = fives(k)});
  std::vector<double> expected, magnitude;
  reference(m, n, k, [&](auto i, auto l) { return a[i * k + l]; }, [&](auto l, auto j) { return w.values[j * k + l]; }, 5.0f,
            expected, magnitude);
  expect_close(test::download(y.tensor()), expected, magnitude, k);
  reference(m, k, n, [&](auto i, auto l) { return g[i * n + l]; }, [&](auto l, auto j) { return w.values[l * k + j]; }, 5.0f,
            expected, magnitude);
  expect_close(test::download(dx.tensor()), expected, magnitude, n);
  y.expect_guards_intact();
  dx.expect_guards_intact();
}

// Blocks of several subgroups, as GPUs get them, with inner dimensions that do and do not divide into steps.
TEST(MatrixProduct, SeveralSubgroupsShareABlock) {
  const auto best = default_matrix_tile(test::device().info());
  if (test::must_skip(best.has_value())) GTEST_SKIP() << "The adapter has no matrices.";
  MatrixTile tile = *best;
  tile.part_m = 2 * tile.matrix.m;
  tile.part_n = tile.matrix.n;
  tile.block_m = 2 * tile.part_m;
  tile.block_n = 2 * tile.part_n;
  tile.block_k = 2 * tile.matrix.k;
  for (const auto [m, n, k] : {Shape{70, 40, 64}, Shape{33, 72, 8}}) {
    SCOPED_TRACE(fmt::format("{} x {} x {}", m, n, k));
    const auto w = make_weight(test::random_values(std::size_t{n} * k, 1), n, k, ProductPath::matrix);
    const Operand x = test::upload_operand(test::random_values(std::size_t{m} * k, 2), m, k, ProductPath::matrix);
    const Operand dy = test::upload_operand(test::random_values(std::size_t{m} * n, 3), m, n, ProductPath::matrix);
    const auto a = test::download(x), g = test::download(dy);
    GuardedTensor y(DType::f32, {m, n}), dx(DType::f32, {m, k});
    {
      gpu::Recorder recorder(test::device());
      record_matrix_nt(recorder, {.x = x, .w = w.weight, .y = y.tensor(), .tile = tile});
      record_matrix_nn(recorder, {.x = dy, .w = w.weight, .y = dx.tensor(), .tile = tile});
      recorder.submit();
    }
    std::vector<double> expected, magnitude;
    reference(m, n, k, [&](auto i, auto l) { return a[i * k + l]; }, [&](auto l, auto j) { return w.values[j * k + l]; }, 0.0f,
              expected, magnitude);
    expect_close(test::download(y.tensor()), expected, magnitude, k);
    reference(m, k, n, [&](auto i, auto l) { return g[i * n + l]; }, [&](auto l, auto j) { return w.values[l * k + j]; }, 0.0f,
              expected, magnitude);
    expect_close(test::download(dx.tensor()), expected, magnitude, n);
    y.expect_guards_intact();
    dx.expect_guards_intact();
  }
}

TEST_P(Product, WrongShapesAreRefused) {
  const Operand x = test::upload_operand(test::random_values(12, 1), 3, 4, GetParam());
  const auto w = make_weight(test::random_values(10, 1), 2, 5, GetParam());
  GuardedTensor y(DType::f32, {3, 2});
  gpu::Recorder recorder(test::device());
  EXPECT_THROW(record(recorder, ProductNT{GetParam(), x, w.weight, y.tensor()}), Error);
  EXPECT_THROW(record(recorder, ProductNN{GetParam(), x, w.weight, y.tensor()}), Error);
}

INSTANTIATE_TEST_SUITE_P(Paths, Product, testing::ValuesIn(test::product_paths()),
                         [](const auto& path) { return test::name_of(path.param); });

}  // namespace
}  // namespace nibble::product_test
