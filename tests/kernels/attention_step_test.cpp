#include "nibble/kernels/attention_step.h"

#include "nibble/base/error.h"
#include "nibble/base/half.h"
#include "nibble/kernels/pack_rows.h"
#include "nibble/kernels/qk_norm_rope.h"
#include "nibble/kernels/qkv_heads.h"
#include "nibble/kernels/unpack_rows.h"
#include "tests/kernels/attention_run.h"
#include "tests/kernels/qkv_reference.h"

#include <cmath>
#include <numeric>

namespace nibble::test::attention_step_test {
namespace {

struct Case {
  std::uint32_t heads, key_heads, dim;
  std::vector<std::uint32_t> segments;  // the new token is the last of the last one
  bool norm = true;
  std::uint32_t least_part_keys = 0;  // 0: no room for parts

  QkvCase shape() const {
    return {.attention = {.heads = heads, .key_heads = key_heads, .head_dim = dim, .segments = segments}, .norm = norm};
  }
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << fmt::format("{} heads on {} of {}, {} tokens, norm {}, parts of {}", c.heads, c.key_heads, c.dim,
                            std::accumulate(c.segments.begin(), c.segments.end(), 0u), c.norm, c.least_part_keys);
}

// Caches with the earlier tokens' keys and values, and what an operation makes of the last token.
struct Step {
  QkvCase shape;
  std::uint32_t tokens, capacity;
  std::vector<float> qkv, norms;
  GuardedTensor k, v, o, lse;

  explicit Step(const Case& c, DType keys = DType::f32)
      : shape(c.shape()),
        tokens(shape.tokens()),
        capacity((tokens + 18) / 16 * 16),
        qkv(random_values(std::size_t{tokens} * shape.row(), 1)),
        norms(random_values(2 * c.dim, 3)),
        k(keys, {c.key_heads, capacity, c.dim}),
        v(keys, {c.key_heads, capacity, c.dim}),
        o(DType::f32, {1, c.heads * c.dim}),
        lse(DType::f32, {c.heads, 1}) {
    if (keys != DType::f32) return;
    const auto before = random_values(std::size_t{c.key_heads} * capacity * c.dim, 4);
    for (const GuardedTensor* cache : {&k, &v}) device().write(cache->tensor(), std::as_bytes(std::span(before)));
  }

  Tensor weight(std::size_t which) const {
    return shape.norm ? upload(std::span(norms).subspan(which * shape.dim(), shape.dim()), {shape.dim()}) : Tensor{};
  }
  Tensor table() const { return upload(rope_table(512, shape.dim(), qkv_theta), {512, shape.dim() / 2, 2}); }

  // Queries of these tokens are left aside.
  void cache(std::uint32_t first, std::uint32_t count) {
    if (count == 0) return;
    const auto row = shape.row(), heads = shape.attention.heads;
    const auto positions = shape.positions();
    std::vector<std::uint32_t> ends(count);
    std::iota(ends.begin(), ends.end(), first + 1);
    test::run(QkvHeads{.qkv = {upload(std::span(qkv).subspan(std::size_t{first} * row, std::size_t{count} * row), {count, row}), {}},
                 .q_norm = weight(0), .k_norm = weight(1),
                 .position = upload_u32(std::vector(positions.begin() + first, positions.begin() + first + count)), .table = table(),
                 .eps = qkv_eps, .q = device().tensor(DType::f32, {heads, count, shape.dim()}, "q"), .k = k.tensor(),
                 .v = v.tensor(), .key_end = upload_u32(ends)});
  }

  AttentionStep step(const Case& c) const {
    const std::uint32_t width = c.heads * c.dim;
    AttentionStep op{.qkv = {upload(std::span(qkv).last(shape.row()), {1, shape.row()}), {}}, .q_norm = weight(0), .k_norm = weight(1),
                     .position = upload_u32(std::vector{shape.positions().back()}), .table = table(), .eps = qkv_eps, .k = k.tensor(),
                     .v = v.tensor(), .heads = c.heads,
                     .key_begin = upload_u32(std::vector{shape.attention.key_begin().back()}), .key_end = upload_u32(std::vector{tokens}), .o = o.tensor(), .lse = lse.tensor(),
                     .least_part_keys = c.least_part_keys};
    if (c.least_part_keys) {
      op.parts = {.o = device().tensor(DType::f32, {attention_part_rows, width}, "parts"),
                  .numbers = device().tensor(DType::f32, {attention_part_rows, c.heads, 2}, "numbers")};
    }
    return op;
  }

  void expect_guards_intact() const {
    for (const GuardedTensor* tensor : {&k, &v, &o, &lse}) tensor->expect_guards_intact();
  }
};

class AttentionStepTest : public testing::TestWithParam<Case> {};

// Tolerances are those of attention in f32 (qkv_attention_test.cpp) and, for the cache, of qkv_heads_test.cpp.
void expect_last_of_all(const Case& c, bool by_lanes) {
  Step got(c), expected_cache(c);
  got.cache(0, got.tokens - 1);
  AttentionStep op = got.step(c);
  op.by_lanes = by_lanes;
  run(op);
  expected_cache.cache(0, got.tokens - 1);
  expected_cache.cache(got.tokens - 1, 1);
  EXPECT_LT(relative_error(download(got.k.tensor()), download(expected_cache.k.tensor())), 16 * 0x1p-24);
  EXPECT_EQ(download(got.v.tensor()), download(expected_cache.v.tensor()));

  const auto reference = attend_qkv(got.shape, doubles(got.qkv), got.norms, {}).result;
  const auto o = floats(reference.o), all_lse = floats(reference.lse);
  std::vector<float> lse;
  for (std::uint32_t h = 0; h < c.heads; ++h) lse.push_back(all_lse[std::size_t{h} * got.tokens + got.tokens - 1]);
  const double allowed = (2 * c.dim * std::sqrt(c.dim) / 4 + 64) * 0x1p-24;
  EXPECT_LT(relative_error(download(got.o.tensor()), std::vector(o.end() - c.heads * c.dim, o.end())), allowed);
  EXPECT_LT(relative_error(download(got.lse.tensor()), lse), allowed);
  got.expect_guards_intact();
}

TEST_P(AttentionStepTest, IsTheLastTokenOfAll) {
  for (const bool by_lanes : {false, true}) expect_last_of_all(GetParam(), by_lanes);
}

INSTANTIATE_TEST_SUITE_P(Cases, AttentionStepTest, testing::Values(
    Case{1, 1, 16, {1}}, Case{4, 2, 64, {33}}, Case{6, 2, 80, {5, 70}, true, 32}, Case{8, 2, 128, {31}}, Case{8, 1, 128, {129}, true, 32},
    Case{5, 5, 48, {40, 1}, false, 64}, Case{3, 1, 256, {1, 200}, false, 96}, Case{12, 2, 32, {160}, true, 32}, Case{2, 1, 16, {300}, true, 64}, Case{5, 1, 32, {70, 90}, false, 64}, Case{8, 2, 32, {65}},
    Case{32, 8, 128, {150}, true, 32}));

// Run once more with LP_NATIVE_VECTOR_WIDTH=512, where the software adapter has subgroups of 16, so that 16 lanes share a key.
TEST(AttentionStep, OneLaneAVector) { expect_last_of_all({3, 1, 64, {5, 90}, true, 64}, true); }

TEST(AttentionStep, TheSameBitsEachRun) {
  const Case c{8, 2, 64, {190}, true, 32};
  const auto compute = [&] {
    Step now(c);
    now.cache(0, now.tokens - 1);
    run(now.step(c));
    return std::pair(download(now.o.tensor()), download(now.lse.tensor()));
  };
  EXPECT_EQ(compute(), compute());
}

// Each text as alone, in f32 and, where there is f16, from what that holds of the projection, and of keys and values.
void expect_several_texts_as_alone(DType keys) {
  constexpr std::uint32_t heads = 6, key_heads = 2, dim = 64, capacity = 240, row = (heads + 2 * key_heads) * dim, count = 3;
  const std::array<std::uint32_t, count> begins{0, 20, 110}, ends{5, 101, 240}, positions{4, 80, 300};
  struct Caches {
    GuardedTensor k, v, o{DType::f32, {count, heads * dim}}, lse{DType::f32, {heads, count}};
    explicit Caches(DType dtype) : k(dtype, {key_heads, capacity, dim}), v(dtype, {key_heads, capacity, dim}) {
      const Tensor before = upload(random_values(std::size_t{key_heads} * capacity * dim, 4), {key_heads, capacity, dim}, dtype);
      gpu::Recorder recorder(device());
      for (const GuardedTensor* cache : {&k, &v}) recorder.copy(before, cache->tensor());
      recorder.submit();
    }
  };
  Operand qkv{upload(random_values(count * row, 1), {count, row}), {}};
  const Tensor norm = upload(random_values(dim, 2), {dim}), table = upload(rope_table(512, dim, qkv_theta), {512, dim / 2, 2});
  const auto step = [&](const Operand& of, std::size_t first, std::uint32_t tokens, const Caches& caches, const Tensor& o, const Tensor& lse) {
    const auto part = [&](const std::array<std::uint32_t, count>& values) { return upload_u32(std::span(values).subspan(first, tokens)); };
    run(AttentionStep{.qkv = of, .q_norm = norm, .k_norm = norm, .position = part(positions), .table = table, .k = caches.k.tensor(), .v = caches.v.tensor(),
                      .heads = heads, .key_begin = part(begins), .key_end = part(ends), .o = o, .lse = lse,
                      .parts = {.o = device().tensor(DType::f32, {attention_part_rows, heads * dim}, "parts"),
                                .numbers = device().tensor(DType::f32, {attention_part_rows, heads, 2}, "numbers")},
                      .most_keys = 130, .least_part_keys = 32});
  };
  const auto expect_same = [&](const Operand& of) {
    const Caches together(keys), apart(keys);
    step(of, 0, count, together, together.o.tensor(), together.lse.tensor());
    const auto o = download(together.o.tensor()), lse = download(together.lse.tensor());
    for (std::uint32_t t = 0; t < count; ++t) {
      const Tensor own_o = device().tensor(DType::f32, {1, heads * dim}, "o"), own_lse = device().tensor(DType::f32, {heads, 1}, "lse");
      step({of.data.rows(t, t + 1), of.scale ? upload(std::array{download(of.scale)[t]}, {1}) : Tensor{}}, t, 1, apart, own_o, own_lse);
      EXPECT_LT(relative_error(std::span(o).subspan(std::size_t{t} * heads * dim, heads * dim), download(own_o)), 64 * 0x1p-24) << t;
      for (std::uint32_t h = 0; h < heads; ++h) EXPECT_NEAR(lse[h * count + t], download(own_lse)[h], 1e-5) << t;
    }
    EXPECT_EQ(download(together.k.tensor()), download(apart.k.tensor()));
    EXPECT_EQ(download(together.v.tensor()), download(apart.v.tensor()));
    for (const GuardedTensor* tensor : {&together.k, &together.v, &together.o, &together.lse}) tensor->expect_guards_intact();
    return o;
  };
  if (device().info().f16) {
    const Operand packed = make_operand(device(), ProductPath::f16, count, row, "qkv");
    run(PackRows{.x = qkv.data, .y = packed});
    run(UnpackRows{.x = packed, .y = qkv.data});
    EXPECT_EQ(expect_same(packed), expect_same(qkv));
  }
  expect_same(qkv);
}

TEST(AttentionStep, TokensOfSeveralTexts) { expect_several_texts_as_alone(DType::f32); }

TEST(AttentionStep, TokensOfSeveralTextsWithKeysInF16) {
  if (must_skip(device().info().f16)) GTEST_SKIP() << "The adapter has no f16.";
  expect_several_texts_as_alone(DType::f16);
}

// As with what f16 holds of keys and values in f32, but for the new token's own, which are rounded too.
TEST(AttentionStep, KeysInF16) {
  if (must_skip(device().info().f16)) GTEST_SKIP() << "The adapter has no f16.";
  const Case c{8, 2, 128, {300}, true, 96};
  const Step exact(c), half(c, DType::f16);
  gpu::Recorder recorder(device());
  const Tensor rounded = upload(random_values(exact.k.tensor().size(), 4), {c.key_heads, exact.capacity, c.dim}, DType::f16);
  const Tensor same = upload(download(rounded), {c.key_heads, exact.capacity, c.dim});
  for (const GuardedTensor* cache : {&half.k, &half.v}) recorder.copy(rounded, cache->tensor());
  for (const GuardedTensor* cache : {&exact.k, &exact.v}) recorder.copy(same, cache->tensor());
  recorder.submit();
  run(exact.step(c));
  run(half.step(c));
  // One of 300 keys is off by 2^-11.
  EXPECT_LT(relative_error(download(half.o.tensor()), download(exact.o.tensor())), 0x1p-15);
  EXPECT_GT(relative_error(download(half.o.tensor()), download(exact.o.tensor())), 0.0);
  for (const auto& [of, in_f16] : {std::pair{&exact.k, &half.k}, {&exact.v, &half.v}}) {
    const auto in_f32 = download(of->tensor()), values = download(in_f16->tensor());
    for (std::size_t i = 0; i < values.size(); ++i) EXPECT_EQ(values[i], f16_to_f32(f32_to_f16(in_f32[i]))) << i;
  }
  half.expect_guards_intact();
}

TEST(AttentionStep, RefusesWhatDoesNotFit) {
  const Case c{4, 2, 64, {20}};
  const Step made(c);
  gpu::Recorder recorder(device());
  const auto refuse = [&](const std::function<void(AttentionStep&)>& change) {
    AttentionStep bad = made.step(c);
    change(bad);
    EXPECT_THROW(record(recorder, bad), Error);
  };
  refuse([](AttentionStep& op) { op.key_end = upload_u32(std::array{20u, 20u}); });
  refuse([](AttentionStep& op) { op.heads = 3; });
  refuse([](AttentionStep& op) { op.k_norm = {}; });
  refuse([](AttentionStep& op) { op.qkv.data = op.qkv.data.view({1, 500}); });
  refuse([](AttentionStep& op) { op.lse = upload(std::vector<float>(8), {4, 2}); });
}

}  // namespace
}  // namespace nibble::test::attention_step_test
