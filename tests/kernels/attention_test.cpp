#include "nibble/base/error.h"
#include "nibble/base/half.h"
#include "nibble/kernels/attention.h"
#include "tests/kernels/attention_run.h"
#include "tests/support/gpu_test.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace nibble::test::attention_test {
namespace {

// The scores' rounding bounds everything else: a score is D products of values below 1, on average 1/4, over sqrt(D),
// so it is off by at most D u sqrt(D)/4 (u = 2^-24), and exp(score) by that share. exp itself may be off by 3 + 2|x|
// units, |x| < 16 here, and the sums over keys and dimensions behind it as much as the score again.
double tolerance(std::uint32_t head_dim) {
  const double d = head_dim;
  return (2 * d * std::sqrt(d) / 4 + 64) * 0x1p-24;
}

// dp - delta loses to cancellation what |dp| exceeds it by, about sqrt(keys) here; and there are two more products.
double gradient_tolerance(std::uint32_t head_dim) { return 8 * tolerance(head_dim); }

void expect_as_reference(const AttentionCase& shape, AttentionVariant variant) {
  SCOPED_TRACE(fmt::format("{} heads on {} of {}, segments {}", shape.heads, shape.key_heads, shape.head_dim,
                           fmt::join(shape.segments, " ")));
  const AttentionInputs inputs(shape);
  const auto outputs = run(shape, inputs, variant);
  const auto expected = attend(shape, doubles(inputs.q), doubles(inputs.k), doubles(inputs.v));
  const auto gradients =
      attend_backward(shape, doubles(inputs.q), doubles(inputs.k), doubles(inputs.v), doubles(inputs.d_o));
  EXPECT_LT(relative_error(outputs.o, floats(expected.o)), tolerance(shape.head_dim));
  EXPECT_LT(relative_error(outputs.lse, floats(expected.lse)), tolerance(shape.head_dim));
  EXPECT_LT(relative_error(outputs.dv, floats(gradients.dv)), gradient_tolerance(shape.head_dim));
  // Where every segment is one token, dq and dk are zero but for rounding.
  if (shape.tokens() == shape.segments.size()) return;
  EXPECT_LT(relative_error(outputs.dq, floats(gradients.dq)), gradient_tolerance(shape.head_dim));
  EXPECT_LT(relative_error(outputs.dk, floats(gradients.dk)), gradient_tolerance(shape.head_dim));
}

class AttentionVariants : public testing::TestWithParam<AttentionVariant> {};
INSTANTIATE_TEST_SUITE_P(All, AttentionVariants,
                         testing::Values(AttentionVariant::rows, AttentionVariant::tiles,
                                         AttentionVariant::small_tiles));

TEST_P(AttentionVariants, SegmentsOfEveryLength) {
  const std::vector<std::vector<std::uint32_t>> streams = {
      {1}, {2}, {7, 1, 2}, {63}, {64}, {65}, {1, 64, 63, 65, 2, 31, 33}, {130, 1, 1, 1, 5}};
  for (const auto& segments : streams) {
    expect_as_reference({.heads = 6, .key_heads = 2, .head_dim = 64, .segments = segments}, GetParam());
  }
}

TEST_P(AttentionVariants, HeadsOfEverySize) {
  for (const std::uint32_t head_dim : {32u, 80u, 128u, 256u}) {
    expect_as_reference({.heads = 2, .key_heads = 1, .head_dim = head_dim, .segments = {3, 70}}, GetParam());
  }
}

// Windows that end in, at and beyond a block of keys, and one that no segment fills.
TEST_P(AttentionVariants, SlidingWindows) {
  for (const std::uint32_t window : {2u, 15u, 32u, 33u, 64u, 65u, 100u, 1000u}) {
    SCOPED_TRACE(window);
    expect_as_reference({.heads = 4, .key_heads = 2, .head_dim = 64, .segments = {150, 40, 1, 70}, .window = window}, GetParam());
  }
}

TEST_P(AttentionVariants, GroupsOfHeads) {
  for (const std::uint32_t key_heads : {1u, 2u, 4u}) {
    expect_as_reference({.heads = 4, .key_heads = key_heads, .head_dim = 32, .segments = {40, 9}}, GetParam());
  }
}

TEST_P(AttentionVariants, TheSameBitsEachRun) {
  const AttentionCase shape{.heads = 6, .key_heads = 2, .head_dim = 64, .segments = {50, 67, 3}};
  const AttentionInputs inputs(shape);
  EXPECT_EQ(run(shape, inputs, GetParam()), run(shape, inputs, GetParam()));
}

// Scores of a few thousand overflow exp unless the largest is taken off first.
TEST_P(AttentionVariants, LargeScores) {
  const AttentionCase shape{.heads = 1, .key_heads = 1, .head_dim = 32, .segments = {70}};
  AttentionInputs inputs(shape);
  for (float& value : inputs.q) value *= 4096;
  const auto outputs = run(shape, inputs, GetParam());
  auto expected_q = doubles(inputs.q);
  // One key has nearly all the weight, so each output is that key's value.
  for (std::uint32_t i = 0; i < shape.tokens(); ++i) {
    double best = -1e300;
    std::uint32_t best_key = 0;
    for (std::uint32_t j = 0; j <= i; ++j) {
      double score = 0;
      for (std::uint32_t d = 0; d < 32; ++d) score += expected_q[i * 32 + d] * inputs.k[j * 32 + d];
      if (score > best) best = score, best_key = j;
    }
    EXPECT_NEAR(outputs.lse[i], best / std::sqrt(32.0), 1.0);
    for (std::uint32_t d = 0; d < 32; ++d) EXPECT_NEAR(outputs.o[i * 32 + d], inputs.v[best_key * 32 + d], 0.5);
  }
  for (const auto* gradient : {&outputs.dq, &outputs.dk, &outputs.dv}) {
    for (const float value : *gradient) EXPECT_TRUE(std::isfinite(value));
  }
}

TEST(AttentionReference, GradientsAreSlopes) {
  const AttentionCase shape{.heads = 4, .key_heads = 2, .head_dim = 4, .segments = {1, 4, 2}};
  const auto q = doubles(random_values(shape.query_values(), 1)), k = doubles(random_values(shape.key_values(), 2));
  const auto v = doubles(random_values(shape.key_values(), 3)), d_o = doubles(random_values(shape.query_values(), 4));
  const auto loss = [&](const AttentionResult& result) {
    return std::inner_product(result.o.begin(), result.o.end(), d_o.begin(), 0.0);
  };
  const auto gradients = attend_backward(shape, q, k, v, d_o);
  std::vector<std::size_t> all(q.size()), keys(k.size());
  std::iota(all.begin(), all.end(), 0u);
  std::iota(keys.begin(), keys.end(), 0u);
  const auto dq = finite_differences([&](const auto& x) { return loss(attend(shape, x, k, v)); }, q, all);
  const auto dk = finite_differences([&](const auto& x) { return loss(attend(shape, q, x, v)); }, k, keys);
  const auto dv = finite_differences([&](const auto& x) { return loss(attend(shape, q, k, x)); }, v, keys);
  // Central differences of step 1e-4 are off by about 1e-8 times the third derivative.
  for (const std::size_t i : all) EXPECT_NEAR(gradients.dq[i], dq[i], 1e-7);
  for (const std::size_t i : keys) EXPECT_NEAR(gradients.dk[i], dk[i], 1e-7);
  for (const std::size_t i : keys) EXPECT_NEAR(gradients.dv[i], dv[i], 1e-7);
}

struct Piece {
  std::uint32_t first, count;
  std::optional<AttentionVariant> variant = {};
  DType keys = DType::f32;
};
struct Generated {
  std::vector<float> o, lse;
  bool operator==(const Generated&) const = default;
};

// A piece's queries of growing sequences, against keys in a cache of `capacity` rows a head.
Generated generate(const AttentionCase& shape, const AttentionInputs& inputs, std::uint32_t capacity, const Piece& piece,
                   bool with_parts = true) {
  const std::uint32_t tokens = shape.tokens(), dim = shape.head_dim, first = piece.first, count = piece.count;
  std::vector<float> q, k(std::size_t{shape.key_heads} * capacity * dim, 1e30f), v = k;
  for (std::uint32_t h = 0; h < shape.heads; ++h) {
    const auto from = inputs.q.begin() + (h * tokens + first) * dim;
    q.insert(q.end(), from, from + count * dim);
  }
  for (std::uint32_t h = 0; h < shape.key_heads; ++h) {
    std::copy_n(inputs.k.begin() + h * tokens * dim, tokens * dim, k.begin() + h * capacity * dim);
    std::copy_n(inputs.v.begin() + h * tokens * dim, tokens * dim, v.begin() + h * capacity * dim);
  }
  const auto all_begins = shape.key_begin();
  const std::vector<std::uint32_t> begins(all_begins.begin() + first, all_begins.begin() + first + count);
  std::vector<std::uint32_t> ends(count);
  std::iota(ends.begin(), ends.end(), first + 1);
  GuardedTensor o(DType::f32, {count, shape.heads * dim}), lse(DType::f32, {shape.heads, count});
  GuardedTensor part_o(DType::f32, {attention_part_rows, shape.heads * dim});
  GuardedTensor part_numbers(DType::f32, {attention_part_rows, shape.heads, 2});
  const Attention op{.q = upload(q, {shape.heads, count, dim}),
                     .k = upload(k, {shape.key_heads, capacity, dim}, piece.keys),
                     .v = upload(v, {shape.key_heads, capacity, dim}, piece.keys),
                     .key_begin = upload_u32(begins),
                     .key_end = upload_u32(ends),
                     .o = o.tensor(),
                     .lse = lse.tensor(),
                     .variant = piece.variant,
                     .parts = with_parts ? AttentionParts{part_o.tensor(), part_numbers.tensor()} : AttentionParts{},
                     .most_keys = shape.window > 0 ? std::min(first + count, shape.window) : first + count,
                     .least_part_keys = 32};
  gpu::Recorder recorder(device());
  record(recorder, op);
  recorder.submit();
  for (const auto* output : {&o, &lse, &part_o, &part_numbers}) output->expect_guards_intact();
  return {download(o.tensor()), download(lse.tensor())};
}

void expect_generated(const AttentionCase& shape, const Generated& got, const AttentionResult& whole, const Piece& piece) {
  const std::size_t row = std::size_t{shape.heads} * shape.head_dim;
  const auto expected = floats(whole.o);
  std::vector<float> lse;
  for (std::uint32_t h = 0; h < shape.heads; ++h) {
    const auto from = whole.lse.begin() + h * shape.tokens() + piece.first;
    lse.insert(lse.end(), from, from + piece.count);
  }
  const auto what = fmt::format("{} queries from {} on, {} heads on {} of {}", piece.count, piece.first, shape.heads,
                                shape.key_heads, shape.head_dim);
  const auto o = std::span(expected).subspan(piece.first * row, piece.count * row);
  EXPECT_LT(relative_error(got.o, o), tolerance(shape.head_dim)) << what;
  EXPECT_LT(relative_error(got.lse, lse), tolerance(shape.head_dim)) << what;
}

// Up to 128 keys are one part, without room for parts all are; 32 queries cut them in two, fewer in up to 23 (some of which are
// empty for the first of several queries).
TEST(Attention, GenerationEqualsTheWholeForward) {
  const Piece pieces[] = {{0, 1}, {1, 1}, {31, 3}, {63, 2}, {127, 1}, {127, 3}, {128, 1}, {254, 8}, {511, 2}, {700, 1}, {690, 11},
                          {690, 11, AttentionVariant::decode}, {660, 32, AttentionVariant::decode},
                          {600, 70, AttentionVariant::decode}, {100, 70, AttentionVariant::tiles}};
  for (const std::uint32_t head_dim : {16u, 32u, 64u, 80u, 128u, 256u}) {
    const std::uint32_t key_heads = head_dim > 100 ? 1 : 2;
    const AttentionCase shape{.heads = 3 * key_heads, .key_heads = key_heads, .head_dim = head_dim, .segments = {701}};
    const AttentionInputs inputs(shape);
    const auto expected = attend(shape, doubles(inputs.q), doubles(inputs.k), doubles(inputs.v));
    for (const Piece& piece : pieces) expect_generated(shape, generate(shape, inputs, 707, piece), expected, piece);
    const Piece last{700, 1};
    expect_generated(shape, generate(shape, inputs, 707, last, false), expected, last);
  }
}

// Keys and values that f16 holds are the same in it, by every variant.
TEST(Attention, GenerationFromKeysInF16) {
  if (must_skip(device().info().f16)) GTEST_SKIP() << "The adapter has no f16.";
  for (const std::uint32_t head_dim : {48u, 128u}) {
    const AttentionCase shape{.heads = 4, .key_heads = 2, .head_dim = head_dim, .segments = {300}};
    AttentionInputs inputs(shape);
    for (auto* values : {&inputs.k, &inputs.v}) {
      for (float& value : *values) value = f16_to_f32(f32_to_f16(value));
    }
    const auto expected = attend(shape, doubles(inputs.q), doubles(inputs.k), doubles(inputs.v));
    for (const auto variant : {AttentionVariant::decode, AttentionVariant::rows, AttentionVariant::tiles, AttentionVariant::small_tiles}) {
      const Piece piece{230, 70, variant, DType::f16};
      expect_generated(shape, generate(shape, inputs, 304, piece), expected, piece);
    }
  }
}

// Workgroups take 1 to 4 heads, or the largest divisor of the group below.
TEST(Attention, GenerationWithGroupsOfHeads) {
  for (const std::uint32_t group : {1u, 2u, 4u, 5u, 6u, 8u}) {
    const AttentionCase shape{.heads = 2 * group, .key_heads = 2, .head_dim = 48, .segments = {300}};
    const AttentionInputs inputs(shape);
    const auto expected = attend(shape, doubles(inputs.q), doubles(inputs.k), doubles(inputs.v));
    for (const Piece& piece : {Piece{90, 1}, Piece{299, 1}, Piece{293, 7}}) {
      expect_generated(shape, generate(shape, inputs, 300, piece), expected, piece);
    }
  }
}

// Keys begin within what would be a tile of the first, and the last part is empty, as the bound on keys counts from 0.
TEST(Attention, GenerationOfALaterSegment) {
  const AttentionCase shape{.heads = 4, .key_heads = 2, .head_dim = 64, .segments = {37, 260}};
  const AttentionInputs inputs(shape);
  const auto expected = attend(shape, doubles(inputs.q), doubles(inputs.k), doubles(inputs.v));
  for (const Piece& piece : {Piece{37, 1}, Piece{35, 5}, Piece{80, 2}, Piece{296, 1}, Piece{290, 7}}) {
    expect_generated(shape, generate(shape, inputs, 300, piece), expected, piece);
  }
}

TEST(Attention, GenerationInASlidingWindow) {
  for (const std::uint32_t window : {1u, 16u, 100u, 150u, 300u}) {
    const AttentionCase shape{.heads = 4, .key_heads = 2, .head_dim = 64, .segments = {37, 260}, .window = window};
    SCOPED_TRACE(window);
    const AttentionInputs inputs(shape);
    const auto expected = attend(shape, doubles(inputs.q), doubles(inputs.k), doubles(inputs.v));
    for (const Piece& piece : {Piece{36, 1}, Piece{35, 5}, Piece{80, 2}, Piece{296, 1}, Piece{290, 7}}) {
      expect_generated(shape, generate(shape, inputs, 300, piece), expected, piece);
    }
  }
}

TEST(Attention, GenerationGivesTheSameBitsEachRun) {
  const AttentionCase shape{.heads = 8, .key_heads = 2, .head_dim = 64, .segments = {500}};
  const AttentionInputs inputs(shape);
  for (const Piece& piece : {Piece{99, 1}, Piece{499, 1}, Piece{490, 5}}) {
    EXPECT_EQ(generate(shape, inputs, 512, piece), generate(shape, inputs, 512, piece));
  }
}

// exp overflows unless the largest score of all parts is taken off first.
TEST(Attention, GenerationWithLargeScores) {
  constexpr std::uint32_t tokens = 400, dim = 32;
  const AttentionCase shape{.heads = 1, .key_heads = 1, .head_dim = dim, .segments = {tokens}};
  AttentionInputs inputs(shape);
  for (float& value : inputs.q) value *= 4096;
  const Generated got = generate(shape, inputs, tokens, {tokens - 1, 1});
  std::vector<double> scores(tokens);
  for (std::uint32_t j = 0; j < tokens; ++j) {
    for (std::uint32_t d = 0; d < dim; ++d) scores[j] += double{inputs.q[(tokens - 1) * dim + d]} * inputs.k[j * dim + d];
    scores[j] /= std::sqrt(dim);
  }
  const double largest = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  std::vector<double> o(dim);
  for (std::uint32_t j = 0; j < tokens; ++j) {
    const double weight = std::exp(scores[j] - largest);
    total += weight;
    for (std::uint32_t d = 0; d < dim; ++d) o[d] += weight * inputs.v[j * dim + d];
  }
  // Scores of some thousand are off by 2^-24 sqrt(D) of themselves, so weights by a share of a few thousandths.
  for (std::uint32_t d = 0; d < dim; ++d) EXPECT_NEAR(got.o[d], o[d] / total, 0.01);
  EXPECT_NEAR(got.lse[0], largest + std::log(total), 0.01);
}

// On the software adapter o and d_o exceed a binding and are cut by tokens, q and dq by heads. All is zero but one head's
// values in a segment that lies across the cut.
TEST(Attention, TensorsBeyondOneBinding) {
  constexpr std::uint32_t heads = 512, key_heads = 4, dim = 64;
  constexpr std::uint32_t before = 1000, length = 50, tokens = before + length + 1;
  constexpr std::uint32_t head = 511, key_head = 3;
  static_assert(std::uint64_t{tokens} * heads * dim * 4 > 128u << 20);
  const AttentionCase part{.heads = 1, .key_heads = 1, .head_dim = dim, .segments = {length}};
  const AttentionInputs inputs(part);
  AttentionCase shape{.heads = heads, .key_heads = key_heads, .head_dim = dim, .segments = {}};
  shape.segments.assign(before, 1);
  shape.segments.insert(shape.segments.end(), {length, 1});

  const auto zeros = [](std::initializer_list<std::uint32_t> dims) {
    return device().tensor(DType::f32, dims, "test");
  };
  const auto head_rows = [](const Tensor& tensor, std::uint32_t h) {
    return tensor.part((std::uint64_t{h} * tokens + before) * dim, {length, dim});
  };
  const auto token_row = [](const Tensor& tensor, std::uint32_t i) {
    return tensor.part((std::uint64_t{before + i} * heads + head) * dim, {dim});
  };
  const Attention forward{.q = zeros({heads, tokens, dim}),
                          .k = zeros({key_heads, tokens, dim}),
                          .v = zeros({key_heads, tokens, dim}),
                          .key_begin = upload_u32(shape.key_begin()),
                          .key_end = upload_u32(shape.key_end()),
                          .o = zeros({tokens, heads * dim}),
                          .lse = zeros({heads, tokens})};
  const auto backward = backward_of(
      forward, shape, zeros({tokens, heads * dim}),
      {zeros({heads, tokens}), zeros({heads, tokens, dim}), zeros({key_heads, tokens, dim}),
       zeros({key_heads, tokens, dim})});
  const auto bytes = [](const std::vector<float>& values) { return std::as_bytes(std::span(values)); };
  device().write(head_rows(forward.q, head), bytes(inputs.q));
  device().write(head_rows(forward.k, key_head), bytes(inputs.k));
  device().write(head_rows(forward.v, key_head), bytes(inputs.v));
  for (std::uint32_t i = 0; i < length; ++i) {
    device().write(token_row(backward.d_o, i), bytes(inputs.d_o).subspan(i * dim * 4, dim * 4));
  }
  gpu::Recorder recorder(device());
  record(recorder, forward);
  record(recorder, backward);
  recorder.submit();

  const auto q = doubles(inputs.q), k = doubles(inputs.k), v = doubles(inputs.v), d_o = doubles(inputs.d_o);
  const auto expected = floats(attend(part, q, k, v).o);
  const auto gradients = attend_backward(part, q, k, v, d_o);
  for (std::uint32_t i = 0; i < length; ++i) {
    EXPECT_LT(relative_error(download(token_row(forward.o, i)), std::span(expected).subspan(i * dim, dim)),
              tolerance(dim));
  }
  EXPECT_LT(relative_error(download(head_rows(backward.dq, head)), floats(gradients.dq)), gradient_tolerance(dim));
  EXPECT_LT(relative_error(download(head_rows(backward.dk, key_head)), floats(gradients.dk)), gradient_tolerance(dim));
  EXPECT_LT(relative_error(download(head_rows(backward.dv, key_head)), floats(gradients.dv)), gradient_tolerance(dim));
}

TEST(Attention, ShapesThatDoNotMatchAreNamed) {
  gpu::Recorder recorder(device());
  const auto tensor = [](std::initializer_list<std::uint32_t> dims) {
    return device().tensor(DType::f32, dims, "test");
  };
  Attention op{.q = tensor({4, 2, 32}), .k = tensor({3, 2, 32}), .v = tensor({3, 2, 32})};
  EXPECT_THROW(record(recorder, op), Error);
  op.k = op.v = tensor({2, 2, 48});
  EXPECT_THROW(record(recorder, op), Error);
  op.q = tensor({4, 2, 48});
  EXPECT_THROW(record(recorder, op), Error);  // no bounds and no outputs
}

}  // namespace
}  // namespace nibble::test::attention_test
