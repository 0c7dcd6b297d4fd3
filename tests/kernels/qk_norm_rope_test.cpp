#include "nibble/base/error.h"
#include "nibble/kernels/qk_norm_rope.h"
#include "tests/support/gpu_test.h"

#include <cmath>
#include <numeric>

namespace nibble::test::qk_norm_rope_test {
namespace {

// Of u = 2^-24 each: 5 for the mean's effect on inv_rms (vectors of 4 summed over at most 64, in random directions), 3
// for its root and quotient, 2 for norm and weight, and for the rotation 2 of its products' and 1 of the sum's.
constexpr double tolerance = 16 * 0x1p-24;

struct Shape {
  std::uint32_t tokens, heads, head_dim;
  std::uint32_t capacity = 0, row_offset = 0;
  bool norm = true, rope = true;

  std::uint32_t rows() const { return capacity ? capacity : tokens; }
  std::uint32_t width() const { return heads * head_dim; }
};

constexpr float eps = 1e-3f;
constexpr double theta = 1e4;

std::vector<std::uint32_t> positions_of(const Shape& shape) {
  std::vector<std::uint32_t> positions(shape.tokens);
  for (std::uint32_t t = 0; t < shape.tokens; ++t) positions[t] = (t * 7 + 3) % 40;
  return positions;
}

// y of QkNormRope as its formula says, in double; rows outside the tokens are 0.
std::vector<double> reference(const Shape& shape, const std::vector<double>& x, std::span<const float> weight) {
  std::vector<double> y(std::size_t{shape.heads} * shape.rows() * shape.head_dim);
  const auto positions = positions_of(shape);
  const auto frequencies = rope_frequencies(shape.head_dim, theta);
  const std::uint32_t dim = shape.head_dim, half = dim / 2;
  for (std::uint32_t t = 0; t < shape.tokens; ++t) {
    for (std::uint32_t h = 0; h < shape.heads; ++h) {
      std::vector<double> row(x.begin() + t * shape.width() + h * dim, x.begin() + t * shape.width() + (h + 1) * dim);
      if (shape.norm) {
        const double mean = std::inner_product(row.begin(), row.end(), row.begin(), 0.0) / dim;
        for (std::uint32_t d = 0; d < dim; ++d) row[d] *= double{weight[d]} / std::sqrt(mean + double{eps});
      }
      double* out = &y[(std::size_t{h} * shape.rows() + shape.row_offset + t) * dim];
      for (std::uint32_t i = 0; i < half; ++i) {
        const float angle = shape.rope ? static_cast<float>(positions[t]) * frequencies[i] : 0.0f;
        const double cosine = std::cos(double{angle}), sine = std::sin(double{angle});
        out[i] = row[i] * cosine - row[i + half] * sine;
        out[i + half] = row[i + half] * cosine + row[i] * sine;
      }
    }
  }
  return y;
}

struct Tensors {
  std::vector<float> x, weight;
  QkNormRope op;
};

Tensors make(const Shape& shape, const GuardedTensor& y, const GuardedTensor& inv_rms) {
  Tensors result{random_values(std::size_t{shape.tokens} * shape.width(), 1), random_values(shape.head_dim, 2), {}};
  result.op = {.x = {upload(result.x, {shape.tokens, shape.width()})},
               .y = y.tensor(),
               .eps = eps,
               .row_offset = shape.row_offset};
  if (shape.norm) {
    result.op.weight = upload(result.weight, {shape.head_dim});
    result.op.inv_rms = inv_rms.tensor();
  }
  if (shape.rope) {
    result.op.position = upload_u32(positions_of(shape));
    result.op.table = upload(rope_table(40, shape.head_dim, theta), {40, shape.head_dim / 2, 2});
  }
  return result;
}

const std::vector<Shape> shapes = {
    {.tokens = 1, .heads = 1, .head_dim = 64},
    {.tokens = 13, .heads = 6, .head_dim = 64},
    {.tokens = 7, .heads = 3, .head_dim = 80, .capacity = 11, .row_offset = 4},
    {.tokens = 5, .heads = 2, .head_dim = 32},
    {.tokens = 33, .heads = 2, .head_dim = 128},
    {.tokens = 3, .heads = 5, .head_dim = 256, .capacity = 9, .row_offset = 2},
    {.tokens = 9, .heads = 2, .head_dim = 96, .norm = false},
    {.tokens = 9, .heads = 2, .head_dim = 64, .capacity = 20, .row_offset = 1, .norm = false, .rope = false},
};

TEST(QkNormRope, ForwardAsReference) {
  for (const Shape& shape : shapes) {
    GuardedTensor y(DType::f32, {shape.heads, shape.rows(), shape.head_dim});
    GuardedTensor inv_rms(DType::f32, {shape.tokens, shape.heads});
    const auto tensors = make(shape, y, inv_rms);
    const auto untouched = download(y.tensor());
    gpu::Recorder recorder(device());
    record(recorder, tensors.op);
    recorder.submit();
    y.expect_guards_intact();
    inv_rms.expect_guards_intact();
    const auto expected = reference(shape, {tensors.x.begin(), tensors.x.end()}, tensors.weight);
    const auto actual = download(y.tensor());
    for (std::uint32_t h = 0; h < shape.heads; ++h) {
      for (std::uint32_t row = 0; row < shape.rows(); ++row) {
        const std::size_t begin = (std::size_t{h} * shape.rows() + row) * shape.head_dim;
        const auto values = std::span(actual).subspan(begin, shape.head_dim);
        if (row < shape.row_offset || row >= shape.row_offset + shape.tokens) {
          // Still the pattern that is no number.
          for (const float value : values) EXPECT_TRUE(std::isnan(value)) << "row " << row;
          continue;
        }
        const std::vector<float> row_expected(expected.begin() + static_cast<std::ptrdiff_t>(begin),
                                              expected.begin() + static_cast<std::ptrdiff_t>(begin + shape.head_dim));
        EXPECT_LT(relative_error(values, row_expected), tolerance) << "head " << h << ", row " << row;
      }
    }
  }
}

TEST(QkNormRope, BackwardIsTheSlopeOfTheReference) {
  for (const Shape& shape : shapes) {
    GuardedTensor y(DType::f32, {shape.heads, shape.rows(), shape.head_dim});
    GuardedTensor inv_rms(DType::f32, {shape.tokens, shape.heads});
    GuardedTensor dx(DType::f32, {shape.tokens, shape.width()});
    const auto tensors = make(shape, y, inv_rms);
    const auto dy = random_values(y.tensor().size(), 3);
    const QkNormRopeBackward backward{.dy = upload(dy, {shape.heads, shape.rows(), shape.head_dim}),
                                      .x = tensors.op.x,
                                      .weight = tensors.op.weight,
                                      .position = tensors.op.position,
                                      .table = tensors.op.table,
                                      .inv_rms = tensors.op.inv_rms,
                                      .dx = dx.tensor(),
                                      .row_offset = shape.row_offset};
    gpu::Recorder recorder(device());
    record(recorder, tensors.op);
    record(recorder, backward);
    recorder.submit();
    dx.expect_guards_intact();
    const auto actual = download(dx.tensor());
    std::vector<std::size_t> indices;
    for (std::size_t i = 0; i < tensors.x.size(); i += 1 + tensors.x.size() / 97) indices.push_back(i);
    const auto slopes = finite_differences(
        [&](const std::vector<double>& x) {
          const auto out = reference(shape, x, tensors.weight);
          return std::inner_product(out.begin(), out.end(), dy.begin(), 0.0);
        },
        {tensors.x.begin(), tensors.x.end()}, indices);
    // Differences of step 1e-4 are off by 1e-8 times the third derivative, f32 by some units of values of about 4.
    for (std::size_t i = 0; i < indices.size(); ++i) EXPECT_NEAR(actual[indices[i]], slopes[i], 4e-6) << indices[i];
  }
}

TEST(QkNormRope, ToHeadsAndBackIsTheSame) {
  const auto values = random_values(7 * 3 * 32, 5);
  const Tensor x = upload(values, {7, 96});
  GuardedTensor y(DType::f32, {3, 10, 32}), back(DType::f32, {7, 96});
  gpu::Recorder recorder(device());
  record(recorder, ToHeads{.x = {x}, .y = y.tensor(), .row_offset = 2});
  record(recorder, FromHeads{.dy = y.tensor(), .dx = back.tensor(), .row_offset = 2});
  recorder.submit();
  EXPECT_EQ(download(back.tensor()), values);
  EXPECT_EQ(download(y.tensor())[(1 * 10 + 2 + 4) * 32 + 5], values[4 * 96 + 32 + 5]);
}

TEST(QkNormRope, TensorsBeyondOneBinding) {
  constexpr std::uint32_t tokens = 1100, heads = 512, dim = 64;
  static_assert(std::uint64_t{tokens} * heads * dim * 4 > 128u << 20);
  const Tensor x = device().tensor(DType::f32, {tokens, heads * dim}, "x");
  const Tensor y = device().tensor(DType::f32, {heads, tokens, dim}, "y");
  const Tensor back = device().tensor(DType::f32, {tokens, heads * dim}, "back");
  const auto values = random_values(dim, 7);
  const auto row_of = [](const Tensor& tensor, std::uint32_t token, std::uint32_t head) {
    return tensor.part((std::uint64_t{token} * heads + head) * dim, {dim});
  };
  for (const std::uint32_t token : {0u, 1099u}) {
    for (const std::uint32_t head : {0u, 511u}) {
      device().write(row_of(x, token, head), std::as_bytes(std::span(values)));
    }
  }
  gpu::Recorder recorder(device());
  record(recorder, ToHeads{.x = {x}, .y = y});
  record(recorder, FromHeads{.dy = y, .dx = back});
  recorder.submit();
  for (const std::uint32_t token : {0u, 1099u}) {
    for (const std::uint32_t head : {0u, 511u}) {
      EXPECT_EQ(download(y.part((std::uint64_t{head} * tokens + token) * dim, {dim})), values);
      EXPECT_EQ(download(row_of(back, token, head)), values);
    }
  }
}

TEST(QkNormRope, RowsBeyondTheCapacityAreRefused) {
  gpu::Recorder recorder(device());
  const Tensor x = device().tensor(DType::f32, {7, 64}, "x"), y = device().tensor(DType::f32, {2, 10, 32}, "y");
  EXPECT_THROW(record(recorder, ToHeads{.x = {x}, .y = y, .row_offset = 4}), Error);
  EXPECT_THROW(record(recorder, ToHeads{.x = {y.view({7, 32})}, .y = y}), Error);
}

// Frequencies and angles as torch computes them in float32: 1e6^(-2/64) and its multiple by 1000.
TEST(Rope, TableRoundsAsTransformersDoes) {
  const auto frequencies = rope_frequencies(64, 1e6);
  EXPECT_EQ(frequencies[0], 1.0f);
  EXPECT_FLOAT_EQ(frequencies[1], 0.64938163f);
  const auto table = rope_table(1001, 64, 1e6);
  const float angle = 1000.0f * frequencies[1];
  EXPECT_EQ(table[1000 * 64 + 2], static_cast<float>(std::cos(double{angle})));
  EXPECT_EQ(table[1000 * 64 + 3], static_cast<float>(std::sin(double{angle})));
}

}  // namespace
}  // namespace nibble::test::qk_norm_rope_test
