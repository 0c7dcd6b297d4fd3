#include "nibble/base/error.h"
#include "nibble/kernels/product_matrix.h"
#include "tests/kernels/attention_run.h"

#include <fmt/ranges.h>

#include <cmath>

namespace nibble::test {
namespace {

// f16 operands are off by 2^-11 of each value at most: a product of two by 2^-10, which bounds o and dv, whose sums leave
// less of it. The scores' errors, 2^-10 of q . k / sqrt(D), whose terms are on average 1/4, come to the same in lse; and dq
// and dk are products with dS, itself the difference of two.
constexpr double matrix_tolerance = 0x1p-10;
constexpr double matrix_gradient_tolerance = 0x1p-9;

class AttentionMatrix : public testing::Test {
 protected:
  void SetUp() override {
    if (must_skip(matrix_fits(device(), 64, 64))) GTEST_SKIP() << "The adapter has no matrices.";
  }

  void expect_as_reference(const AttentionCase& shape, const AttentionInputs& inputs) {
    SCOPED_TRACE(fmt::format("{} heads on {} of {}, segments {}", shape.heads, shape.key_heads, shape.head_dim,
                             fmt::join(shape.segments, " ")));
    const auto outputs = run(shape, inputs, AttentionVariant::matrix);
    const auto q = doubles(inputs.q), k = doubles(inputs.k), v = doubles(inputs.v), d_o = doubles(inputs.d_o);
    const auto expected = attend(shape, q, k, v);
    const auto gradients = attend_backward(shape, q, k, v, d_o);
    EXPECT_LT(relative_error(outputs.o, floats(expected.o)), matrix_tolerance);
    EXPECT_LT(relative_error(outputs.lse, floats(expected.lse)), matrix_gradient_tolerance);
    EXPECT_LT(relative_error(outputs.dv, floats(gradients.dv)), matrix_tolerance);
    if (shape.tokens() == shape.segments.size()) return;
    EXPECT_LT(relative_error(outputs.dq, floats(gradients.dq)), matrix_gradient_tolerance);
    EXPECT_LT(relative_error(outputs.dk, floats(gradients.dk)), matrix_gradient_tolerance);
  }
};

TEST_F(AttentionMatrix, SegmentsOfEveryLength) {
  const std::vector<std::vector<std::uint32_t>> streams = {
      {1}, {2}, {7, 1, 2}, {63}, {64}, {65}, {1, 64, 63, 65, 2, 31, 33}, {130, 1, 1, 1, 5}, {300}};
  for (const auto& segments : streams) {
    const AttentionCase shape{.heads = 6, .key_heads = 2, .head_dim = 64, .segments = segments};
    expect_as_reference(shape, AttentionInputs(shape));
  }
}

TEST_F(AttentionMatrix, HeadsOf128) {
  for (const auto& segments : std::vector<std::vector<std::uint32_t>>{{3}, {1, 70, 65}, {200}}) {
    const AttentionCase shape{.heads = 2, .key_heads = 1, .head_dim = 128, .segments = segments};
    expect_as_reference(shape, AttentionInputs(shape));
  }
}

TEST_F(AttentionMatrix, GroupsOfHeads) {
  for (const std::uint32_t key_heads : {1u, 2u, 4u}) {
    const AttentionCase shape{.heads = 4, .key_heads = key_heads, .head_dim = 64, .segments = {40, 9}};
    expect_as_reference(shape, AttentionInputs(shape));
  }
}

TEST_F(AttentionMatrix, TheSameBitsEachRun) {
  const AttentionCase shape{.heads = 6, .key_heads = 2, .head_dim = 64, .segments = {50, 67, 3}};
  const AttentionInputs inputs(shape);
  EXPECT_EQ(run(shape, inputs, AttentionVariant::matrix), run(shape, inputs, AttentionVariant::matrix));
}

// Scales of rows are powers of two, which change no rounding.
TEST_F(AttentionMatrix, ValuesBeyondF16) {
  const AttentionCase shape{.heads = 4, .key_heads = 2, .head_dim = 64, .segments = {90, 45}};
  for (const float amplitude : {0x1p40f, 0x1p-40f}) {
    AttentionInputs inputs(shape);
    for (float& value : inputs.v) value *= amplitude;
    for (float& value : inputs.d_o) value *= amplitude;
    expect_as_reference(shape, inputs);
  }
}

// Rows of very different magnitudes; errors are those of the largest.
TEST_F(AttentionMatrix, RowsOfEveryMagnitude) {
  const AttentionCase shape{.heads = 4, .key_heads = 2, .head_dim = 64, .segments = {90, 45}};
  AttentionInputs inputs(shape);
  const auto factor = [](std::size_t row) { return std::ldexp(1.0f, static_cast<int>(row * 7 % 41) - 20); };
  for (std::size_t i = 0; i < inputs.v.size(); ++i) inputs.v[i] *= factor(i / 64);
  for (std::size_t i = 0; i < inputs.d_o.size(); ++i) inputs.d_o[i] *= factor(i / 64);
  for (std::size_t i = 0; i < 64; ++i) inputs.d_o[i] = inputs.v[i] = 0;
  expect_as_reference(shape, inputs);
}

// Every block of keys has larger scores than the last, so that earlier results are scaled down again and again.
TEST_F(AttentionMatrix, MaximaThatGrow) {
  const AttentionCase shape{.heads = 1, .key_heads = 1, .head_dim = 64, .segments = {300}};
  AttentionInputs inputs(shape);
  for (std::size_t i = 0; i < inputs.q.size(); ++i) {
    inputs.q[i] = 1 + inputs.q[i] / 8;
    inputs.k[i] = static_cast<float>(i / 64 / 32) * (1 + inputs.k[i] / 8);
  }
  const auto outputs = run(shape, inputs, AttentionVariant::matrix);
  const auto expected = attend(shape, doubles(inputs.q), doubles(inputs.k), doubles(inputs.v));
  // Scores of 8 a block, 72 in the last, are off by 2^-10 of themselves at most, so weights by a share of 0.07; all terms
  // of a score having one sign, the errors of 64 average to an eighth of that and less.
  EXPECT_LT(relative_error(outputs.o, floats(expected.o)), 0.07 / 8);
  EXPECT_LT(relative_error(outputs.lse, floats(expected.lse)), matrix_tolerance);
}

TEST_F(AttentionMatrix, WithoutRoomItIsRefused) {
  const AttentionCase shape{.heads = 1, .key_heads = 1, .head_dim = 48, .segments = {20}};
  EXPECT_THROW(run(shape, AttentionInputs(shape), AttentionVariant::matrix), Error);
}

}  // namespace
}  // namespace nibble::test
