#include "nibble/kernels/qkv_attention.h"

#include "nibble/base/error.h"
#include "nibble/kernels/product_matrix.h"
#include "nibble/kernels/qk_norm_rope.h"
#include "tests/kernels/qkv_run.h"

#include <fmt/ranges.h>

#include <cmath>
#include <numeric>

namespace nibble::test::qkv_attention_test {
namespace {

using Mode = QkvMode;
using Inputs = QkvInputs;

struct Outputs {
  std::vector<float> qkv, d_o;  // as they were after rounding
  std::vector<float> o, lse, d_qkv;
  bool operator==(const Outputs&) const = default;
};

// An operand between guards.
struct GuardedOperand {
  GuardedTensor data, scale;
  bool scaled;
  GuardedOperand(ProductPath path, std::uint32_t rows, std::uint32_t columns)
      : data(operand_dtype(path), {rows, columns}), scale(DType::f32, {rows}), scaled(path != ProductPath::f32) {}
  Operand operand() const { return {data.tensor(), scaled ? scale.tensor() : Tensor{}}; }
  void expect_guards_intact() const {
    data.expect_guards_intact();
    scale.expect_guards_intact();
  }
};

// As products leave operands: not at the top of f16's range.
void lower(Operand& operand, int binades) {
  if (!operand.scale) return;
  auto data = download(operand.data), scale = download(operand.scale);
  for (float& value : data) value = std::ldexp(value, -binades);
  for (float& value : scale) value = std::ldexp(value, binades);
  operand.data = upload(data, {operand.data.dim(0), operand.data.dim(1)}, DType::f16);
  operand.scale = upload(scale, {operand.scale.dim(0)});
}

Outputs run(const QkvCase& shape, const Mode& mode, const Inputs& inputs, int binades = 0) {
  const std::uint32_t tokens = shape.tokens(), queries = shape.attention.heads * shape.dim();
  const GuardedOperand o(mode.path, tokens, queries), d_qkv(mode.path, tokens, shape.row());
  const GuardedTensor lse(DType::f32, {shape.attention.heads, tokens});
  QkvAttention forward = forward_of(shape, mode, inputs, o.operand(), lse.tensor());
  Operand d_o = upload_operand(inputs.d_o, tokens, queries, mode.path);
  lower(forward.qkv, binades);
  lower(d_o, binades);
  gpu::Recorder recorder(device());
  record(recorder, forward);
  record(recorder, QkvAttentionBackward{.forward = forward, .query_end = upload_u32(shape.attention.query_end()), .d_o = d_o,
                                        .d_qkv = d_qkv.operand()});
  recorder.submit();
  o.expect_guards_intact();
  d_qkv.expect_guards_intact();
  lse.expect_guards_intact();
  return {download(forward.qkv), download(d_o), download(o.operand()), download(lse.tensor()), download(d_qkv.operand())};
}

// Columns [begin, end) of each row.
std::vector<float> columns(std::span<const float> values, std::size_t row, std::size_t begin, std::size_t end) {
  std::vector<float> result;
  for (std::size_t at = 0; at < values.size(); at += row) {
    const auto part = values.subspan(at + begin, end - begin);
    result.insert(result.end(), part.begin(), part.end());
  }
  return result;
}

void expect_as_reference(const QkvCase& shape, const Mode& mode, const Inputs& inputs, int binades = 0) {
  const AttentionCase& a = shape.attention;
  SCOPED_TRACE(fmt::format("{} heads on {} of {}, segments {}", a.heads, a.key_heads, a.head_dim, fmt::join(a.segments, " ")));
  const Outputs outputs = run(shape, mode, inputs, binades);
  const auto expected = attend_qkv(shape, doubles(outputs.qkv), inputs.norms, doubles(outputs.d_o));
  EXPECT_LT(relative_error(outputs.o, floats(expected.result.o)), mode.result(shape.dim()));
  EXPECT_LT(relative_error(outputs.lse, floats(expected.result.lse)), mode.lse(shape.dim()));
  const std::size_t queries = std::size_t{a.heads} * a.head_dim, keys = queries + std::size_t{a.key_heads} * a.head_dim;
  const auto gradients = floats(expected.d_qkv);
  const auto error = [&](std::size_t begin, std::size_t end) {
    return relative_error(columns(outputs.d_qkv, shape.row(), begin, end), columns(gradients, shape.row(), begin, end));
  };
  EXPECT_LT(error(keys, shape.row()), mode.value_gradient(shape.dim()));
  // Where every segment is one token, the others are zero but for rounding.
  if (shape.tokens() == a.segments.size()) return;
  EXPECT_LT(error(0, queries), mode.gradient(shape.dim()));
  EXPECT_LT(error(queries, keys), mode.gradient(shape.dim()));
}

class QkvAttentionModes : public testing::TestWithParam<Mode> {
 protected:
  void SetUp() override {
    if (GetParam().path == ProductPath::f32) return;
    if (must_skip(matrix_fits(device(), 64, 64))) GTEST_SKIP() << "The adapter has no matrices.";
  }

  void expect_as_reference(const QkvCase& shape, const Inputs& inputs, int binades = 0) {
    qkv_attention_test::expect_as_reference(shape, GetParam(), inputs, binades);
  }
};

INSTANTIATE_TEST_SUITE_P(All, QkvAttentionModes,
                         testing::Values(Mode{ProductPath::f32, false}, Mode{ProductPath::f16, false},
                                         Mode{ProductPath::matrix, true}),
                         [](const auto& mode) { return name_of(mode.param.path); });

TEST_P(QkvAttentionModes, SegmentsOfEveryLength) {
  const std::vector<std::vector<std::uint32_t>> streams = {
      {1}, {2}, {7, 1, 2}, {63}, {64}, {65}, {1, 64, 63, 65, 2, 31, 33}, {130, 1, 1, 1, 5}, {300}};
  for (const auto& segments : streams) {
    const QkvCase shape{.attention = {.heads = 6, .key_heads = 2, .head_dim = 64, .segments = segments}};
    expect_as_reference(shape, Inputs(shape));
  }
}

TEST_P(QkvAttentionModes, HeadsOf128) {
  for (const auto& segments : std::vector<std::vector<std::uint32_t>>{{3}, {1, 70, 65}, {200}}) {
    const QkvCase shape{.attention = {.heads = 2, .key_heads = 1, .head_dim = 128, .segments = segments}};
    expect_as_reference(shape, Inputs(shape));
  }
}

TEST_P(QkvAttentionModes, GroupsOfHeadsWithAndWithoutNorm) {
  for (const std::uint32_t key_heads : {1u, 2u, 4u}) {
    for (const bool norm : {false, true}) {
      const QkvCase shape{.attention = {.heads = 4, .key_heads = key_heads, .head_dim = 64, .segments = {40, 9}}, .norm = norm};
      expect_as_reference(shape, Inputs(shape));
    }
  }
}

// As in attention_test.cpp.
TEST_P(QkvAttentionModes, SlidingWindows) {
  for (const std::uint32_t head_dim : {64u, 128u}) {
    for (const std::uint32_t window : {2u, 15u, 32u, 33u, 64u, 65u, 100u, 1000u}) {
      SCOPED_TRACE(window);
      const QkvCase shape{
          .attention = {.heads = 2, .key_heads = 1, .head_dim = head_dim, .segments = {150, 40, 1, 70}, .window = window}};
      expect_as_reference(shape, Inputs(shape));
    }
  }
}

TEST_P(QkvAttentionModes, TheSameBitsEachRun) {
  const QkvCase shape{.attention = {.heads = 6, .key_heads = 2, .head_dim = 64, .segments = {50, 67, 3}}};
  const Inputs inputs(shape);
  EXPECT_EQ(run(shape, GetParam(), inputs), run(shape, GetParam(), inputs));
}

// Scales are powers of two, which change no rounding; and queries and keys have norms.
TEST_P(QkvAttentionModes, ValuesBeyondF16) {
  const QkvCase shape{.attention = {.heads = 4, .key_heads = 2, .head_dim = 64, .segments = {90, 45}}};
  for (const float amplitude : {0x1p20f, 0x1p-7f}) {
    Inputs inputs(shape);
    for (float& value : inputs.qkv) value *= amplitude;
    for (float& value : inputs.d_o) value *= 1 / amplitude / amplitude;
    expect_as_reference(shape, inputs);
  }
}

TEST_P(QkvAttentionModes, OperandsAnywhereInF16) {
  const QkvCase shape{.attention = {.heads = 4, .key_heads = 2, .head_dim = 64, .segments = {90, 45}}};
  for (const int binades : {-1, 6, 14}) expect_as_reference(shape, Inputs(shape), binades);
}

// Rows of very different magnitudes; errors are those of the largest.
TEST_P(QkvAttentionModes, RowsOfEveryMagnitude) {
  const QkvCase shape{.attention = {.heads = 4, .key_heads = 2, .head_dim = 64, .segments = {90, 45}}};
  Inputs inputs(shape);
  const auto factor = [](std::size_t row) { return std::ldexp(1.0f, static_cast<int>(row * 7 % 41) - 20); };
  const std::size_t queries = 4 * 64, keys = 6 * 64;
  for (std::size_t t = 0; t < shape.tokens(); ++t) {
    // Only values: a head that shares its row's scale with values 2^20 as large is no more than noise.
    const float own = std::max(factor(t), 0x1p-8f);
    for (std::size_t i = keys; i < shape.row(); ++i) inputs.qkv[t * shape.row() + i] *= std::min(own, 0x1p8f);
    for (std::size_t i = 0; i < queries; ++i) inputs.d_o[t * queries + i] *= factor(t);
  }
  for (std::size_t i = 0; i < queries; ++i) inputs.d_o[i] = inputs.d_o[50 * queries + i] = 0;
  for (std::size_t i = keys; i < shape.row(); ++i) inputs.qkv[i] = inputs.qkv[7 * shape.row() + i] = 0;
  expect_as_reference(shape, inputs);
}

// Every block of keys has larger scores than the last, so that results are begun again and again.
TEST_P(QkvAttentionModes, MaximaThatGrow) {
  const QkvCase shape{.attention = {.heads = 1, .key_heads = 1, .head_dim = 64, .segments = {300}}, .norm = false, .rope = false};
  Inputs inputs(shape);
  for (std::size_t t = 0; t < shape.tokens(); ++t) {
    float* row = &inputs.qkv[t * shape.row()];
    for (std::size_t i = 0; i < 64; ++i) {
      row[i] = 1 + row[i] / 8;
      row[64 + i] = static_cast<float>(t / 32) * (1 + row[64 + i] / 8);
    }
  }
  const Outputs outputs = run(shape, GetParam(), inputs);
  const auto expected = attend_qkv(shape, doubles(outputs.qkv), inputs.norms, {}).result;
  // Scores of 8 a block, 72 in the last, are off by 2^-10 of themselves at most, so weights by a share of 0.07; all terms
  // of a score having one sign, the errors of 64 average to an eighth of that and less.
  EXPECT_LT(relative_error(outputs.o, floats(expected.o)), 0.07 / 8);
  EXPECT_LT(relative_error(outputs.lse, floats(expected.lse)), 0x1p-10);
}

// Of all streams up to the longest, of which shorter ones have more parts of keys' gradients.
TEST(QkvAttention, RoomForPartsOfEveryShorterStream) {
  using Heads = std::pair<std::uint32_t, std::uint32_t>;
  for (const auto& [heads, key_heads] : {Heads{32, 8}, Heads{16, 8}, Heads{40, 8}, Heads{12, 2}, Heads{14, 2}, Heads{32, 32}}) {
    for (const std::uint32_t longest : {1u, 100u, 600u, 4095u, 4096u, 9000u}) {
      std::uint32_t most = 0;
      for (std::uint32_t tokens = 1; tokens <= longest; ++tokens) {
        most = std::max(most, tokens * packed_attention_parts({tokens, heads, key_heads, 128}));
      }
      EXPECT_EQ(packed_attention_most_rows({longest, heads, key_heads, 128}), most) << heads << " heads on " << key_heads << ", " << longest << " tokens";
    }
  }
}

// Of one key head for seven, 65,535 tokens have seven parts of keys' gradients and 100,000 one.
TEST(QkvAttention, AStreamFitsWhereEveryShorterOneDoes) {
  if (must_skip(matrix_fits(device(), 64, 64))) GTEST_SKIP() << "The adapter has no matrices.";
  for (const std::uint32_t tokens : {1000u, 30000u, 65535u, 65536u, 100000u, 4000000u}) {
    if (!packed_attention_fits(device(), {tokens, 7, 1, 64})) continue;
    for (std::uint32_t shorter = 1; shorter <= tokens; shorter += 999) {
      ASSERT_TRUE(packed_attention_fits(device(), {shorter, 7, 1, 64})) << shorter << " of " << tokens;
    }
    ASSERT_TRUE(packed_attention_fits(device(), {std::min(tokens, 65535u), 7, 1, 64})) << tokens;
  }
  EXPECT_TRUE(packed_attention_fits(device(), {1000, 7, 1, 64}));
}

// The blocks that GPUs are given for heads of 64, by as many invocations, in the software adapter's smaller subgroups. Its
// workgroup memory has no room for blocks of 128 rows, and heads of 128 would take minutes to compile.
TEST(QkvAttention, BlocksOfGpus) {
  const auto matrix = default_matrix_tile(device().info());
  if (must_skip(matrix.has_value())) GTEST_SKIP() << "The adapter has no matrices.";
  const std::uint32_t subgroup = device().info().subgroup_max_size;
  if (must_skip(subgroup == 8)) GTEST_SKIP() << "Its subgroups are not of 8.";
  const auto tile = [&](std::uint32_t rows, std::uint32_t columns, std::uint32_t scores_across, std::uint32_t results_across) {
    return detail::AttentionTile{.matrix = matrix->matrix, .subgroup = subgroup, .subgroups = rows * columns / 8 / subgroup,
                                 .rows = rows, .columns = columns, .scores_across = scores_across,
                                 .results_across = results_across};
  };
  const std::vector<std::vector<std::uint32_t>> streams = {{3}, {1, 64, 63, 65, 2, 31, 33}, {300}};
  const detail::AttentionTiles tiles{tile(64, 32, 4, 4), tile(64, 16, 1, 2), tile(64, 16, 1, 2)};
  for (const auto& segments : streams) {
    const QkvCase shape{.attention = {.heads = 4, .key_heads = 2, .head_dim = 64, .segments = segments}};
    expect_as_reference(shape, Mode{ProductPath::matrix, true, tiles}, Inputs(shape));
  }
}

// On the software adapter the gradient of the queries exceeds a binding, and is cut amid the segment of 50 tokens. Segments know
// nothing of each other, so the reference goes through the last tokens alone.
TEST(QkvAttention, GradientsBeyondOneBinding) {
  if (must_skip(matrix_fits(device(), 64, 64))) GTEST_SKIP() << "The adapter has no matrices.";
  QkvCase shape{.attention = {.heads = 512, .key_heads = 4, .head_dim = 64, .segments = std::vector<std::uint32_t>(1000, 1)}};
  shape.attention.segments.insert(shape.attention.segments.end(), {50, 1});
  QkvCase end = shape;
  end.attention.segments = {50, 1};
  const std::size_t queries = 512 * 64, first = 1000;
  const std::uint64_t most = device().info().limits.max_binding;
  if (must_skip(shape.tokens() * queries * 4 > most)) GTEST_SKIP() << "A binding has room for " << most << " bytes.";
  const Mode mode{ProductPath::matrix, true};
  const Inputs inputs(shape);
  const Outputs outputs = run(shape, mode, inputs);
  const auto from = [&](const std::vector<float>& values, std::size_t row) { return std::span(values).subspan(first * row); };
  const auto expected = attend_qkv(end, doubles(from(outputs.qkv, shape.row())), inputs.norms, doubles(from(outputs.d_o, queries)));
  EXPECT_LT(relative_error(from(outputs.o, queries), floats(expected.result.o)), mode.result(64));
  EXPECT_LT(relative_error(from(outputs.d_qkv, shape.row()), floats(expected.d_qkv)), mode.gradient(64));
}

TEST(QkvReference, GradientsAreSlopes) {
  for (const bool norm : {false, true}) {
    const QkvCase shape{.attention = {.heads = 2, .key_heads = 1, .head_dim = 8, .segments = {1, 4, 2}}, .norm = norm};
    const Inputs inputs(shape);
    const auto d_o = doubles(inputs.d_o);
    const auto gradients = attend_qkv(shape, doubles(inputs.qkv), inputs.norms, d_o).d_qkv;
    std::vector<std::size_t> all(inputs.qkv.size());
    std::iota(all.begin(), all.end(), 0u);
    const auto slopes = finite_differences(
        [&](const std::vector<double>& x) {
          const auto o = attend_qkv(shape, x, inputs.norms, {}).result.o;
          return std::inner_product(o.begin(), o.end(), d_o.begin(), 0.0);
        },
        doubles(inputs.qkv), all);
    // Central differences of step 1e-4 are off by about 1e-8 times the third derivative.
    for (const std::size_t i : all) EXPECT_NEAR(gradients[i], slopes[i], 1e-6);
  }
}

TEST(QkvAttention, WhatDoesNotFitTheRoomIsRefused) {
  const QkvCase shape{.attention = {.heads = 2, .key_heads = 1, .head_dim = 64, .segments = {20}}};
  const Mode mode{ProductPath::f32, false};
  const Inputs inputs(shape);
  const Operand o = make_operand(device(), mode.path, 20, 128, "o");
  QkvAttention op = forward_of(shape, mode, inputs, o, device().tensor(DType::f32, {2, 20}, "lse"));
  gpu::Recorder recorder(device());
  op.room.shape.tokens = 19;
  EXPECT_THROW(record(recorder, op), Error);
  op.room.shape.tokens = 20;
  op.heads = 4;
  EXPECT_THROW(record(recorder, op), Error);
}

}  // namespace
}  // namespace nibble::test::qkv_attention_test
