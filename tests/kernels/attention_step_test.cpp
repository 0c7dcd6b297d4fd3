#include "nibble/kernels/attention_step.h"

#include "nibble/base/error.h"
#include "nibble/kernels/qk_norm_rope.h"
#include "nibble/kernels/qkv_heads.h"
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

  explicit Step(const Case& c)
      : shape(c.shape()),
        tokens(shape.tokens()),
        capacity((tokens + 18) / 16 * 16),
        qkv(random_values(std::size_t{tokens} * shape.row(), 1)),
        norms(random_values(2 * c.dim, 3)),
        k(DType::f32, {c.key_heads, capacity, c.dim}),
        v(DType::f32, {c.key_heads, capacity, c.dim}),
        o(DType::f32, {1, c.heads * c.dim}),
        lse(DType::f32, {c.heads, 1}) {
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
    test::run(QkvHeads{.qkv = upload(std::span(qkv).subspan(std::size_t{first} * row, std::size_t{count} * row), {count, row}),
                 .q_norm = weight(0), .k_norm = weight(1),
                 .position = upload_u32(std::vector(positions.begin() + first, positions.begin() + first + count)), .table = table(),
                 .eps = qkv_eps, .q = device().tensor(DType::f32, {heads, count, shape.dim()}, "q"), .k = k.tensor(),
                 .v = v.tensor(), .key_end = upload_u32(ends)});
  }

  AttentionStep step(const Case& c) const {
    const std::uint32_t last = tokens - 1, width = c.heads * c.dim;
    AttentionStep op{.qkv = upload(std::span(qkv).last(shape.row()), {1, shape.row()}), .q_norm = weight(0), .k_norm = weight(1),
                     .position = upload_u32(std::vector{shape.positions().back()}), .table = table(), .eps = qkv_eps, .k = k.tensor(),
                     .v = v.tensor(), .heads = c.heads, .first_key = last,
                     .key_begin = upload_u32(std::vector{shape.attention.key_begin().back()}), .o = o.tensor(), .lse = lse.tensor(),
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
TEST_P(AttentionStepTest, IsTheLastTokenOfAll) {
  const Case& c = GetParam();
  Step got(c), expected_cache(c);
  got.cache(0, got.tokens - 1);
  run(got.step(c));
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

INSTANTIATE_TEST_SUITE_P(Cases, AttentionStepTest, testing::Values(
    Case{1, 1, 16, {1}}, Case{4, 2, 64, {33}}, Case{6, 2, 80, {5, 70}, true, 32}, Case{8, 2, 128, {31}}, Case{8, 1, 128, {129}, true, 32},
    Case{5, 5, 48, {40, 1}, false, 64}, Case{3, 1, 256, {1, 200}, false, 96}, Case{12, 2, 32, {160}, true, 32}, Case{2, 1, 16, {300}, true, 64},
    Case{32, 8, 128, {150}, true, 32}));

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

TEST(AttentionStep, RefusesWhatDoesNotFit) {
  const Case c{4, 2, 64, {20}};
  const Step made(c);
  gpu::Recorder recorder(device());
  const auto refuse = [&](const std::function<void(AttentionStep&)>& change) {
    AttentionStep bad = made.step(c);
    change(bad);
    EXPECT_THROW(record(recorder, bad), Error);
  };
  refuse([&](AttentionStep& op) { op.first_key = made.capacity; });
  refuse([](AttentionStep& op) { op.heads = 3; });
  refuse([](AttentionStep& op) { op.k_norm = {}; });
  refuse([](AttentionStep& op) { op.qkv = op.qkv.view({1, 500}); });
  refuse([](AttentionStep& op) { op.lse = upload(std::vector<float>(8), {4, 2}); });
}

}  // namespace
}  // namespace nibble::test::attention_step_test
