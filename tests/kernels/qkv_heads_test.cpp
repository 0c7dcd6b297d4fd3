#include "nibble/kernels/qkv_heads.h"

#include "nibble/base/error.h"
#include "nibble/base/half.h"
#include "nibble/kernels/pack_rows.h"
#include "nibble/kernels/qk_norm_rope.h"
#include "nibble/kernels/unpack_rows.h"
#include "tests/support/gpu_test.h"

#include <algorithm>
#include <numeric>

namespace nibble::test::qkv_heads_test {
namespace {

struct Case {
  std::uint32_t tokens, heads, key_heads, dim, capacity, first_key;
  bool norm;

  std::uint32_t width() const { return (heads + 2 * key_heads) * dim; }
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << fmt::format("{} tokens, {} heads on {} of {}, rows {} of {}, norm {}", c.tokens, c.heads, c.key_heads, c.dim,
                            c.first_key, c.capacity, c.norm);
}

QkvHeads inputs_of(const Case& c) {
  std::vector<std::uint32_t> positions(c.tokens);
  for (std::uint32_t t = 0; t < c.tokens; ++t) positions[t] = (t * 7 + 3) % 40;
  QkvHeads op{.qkv = {upload(random_values(std::size_t{c.tokens} * c.width(), 1), {c.tokens, c.width()}), {}},
              .q_norm = {}, .k_norm = {}, .position = upload_u32(positions),
              .table = upload(rope_table(40, c.dim, 1e4), {40, c.dim / 2, 2}), .q = {}, .k = {}, .v = {}, .key_end = {}};
  std::vector<std::uint32_t> ends(c.tokens);
  std::iota(ends.begin(), ends.end(), c.first_key + 1);
  op.key_end = upload_u32(ends);
  if (c.norm) {
    op.q_norm = upload(random_values(c.dim, 2), {c.dim});
    op.k_norm = upload(random_values(c.dim, 3), {c.dim});
  }
  return op;
}

struct Heads {
  GuardedTensor q, k, v;
  explicit Heads(const Case& c, DType keys = DType::f32)
      : q(DType::f32, {c.heads, c.tokens, c.dim}), k(keys, {c.key_heads, c.capacity, c.dim}), v(keys, {c.key_heads, c.capacity, c.dim}) {
    if (keys != DType::f32) return;
    const auto before = random_values(std::size_t{c.key_heads} * c.capacity * c.dim, 4);
    for (const GuardedTensor* cache : {&k, &v}) device().write(cache->tensor(), std::as_bytes(std::span(before)));
  }
};

class QkvHeadsTest : public testing::TestWithParam<Case> {};

// The operations that it stands for have a reference of their own; sums of squares alone may be added in another order, of up
// to 256 terms, which moves their root by 2^-24 sqrt(256) at most.
TEST_P(QkvHeadsTest, DoesWhatItsPartsDo) {
  const Case& c = GetParam();
  QkvHeads op = inputs_of(c);
  Heads expected(c);
  const GuardedTensor inv_rms(DType::f32, {c.tokens, c.heads});
  const Tensor scratch = c.norm ? inv_rms.tensor() : Tensor{};
  const QkNormRope queries{.x = op.qkv, .weight = op.q_norm, .position = op.position, .table = op.table,
                           .y = expected.q.tensor(), .inv_rms = scratch, .eps = op.eps};
  QkNormRope keys = queries;
  keys.weight = op.k_norm, keys.y = expected.k.tensor(), keys.row_offset = c.first_key, keys.first_column = c.heads * c.dim;
  run(queries);
  run(keys);
  run(ToHeads{.x = op.qkv, .y = expected.v.tensor(), .row_offset = c.first_key,
              .first_column = (c.heads + c.key_heads) * c.dim});
  for (const auto type : {gpu::AdapterType::software, gpu::AdapterType::discrete}) {
    const Heads got(c);
    op.q = got.q.tensor(), op.k = got.k.tensor(), op.v = got.v.tensor(), op.kernel_for = type;
    run(op);
    EXPECT_LT(relative_error(download(op.q), download(expected.q.tensor())), 16 * 0x1p-24);
    EXPECT_LT(relative_error(download(op.k), download(expected.k.tensor())), 16 * 0x1p-24);
    EXPECT_EQ(download(op.v), download(expected.v.tensor()));
    for (const GuardedTensor* tensor : {&got.q, &got.k, &got.v}) tensor->expect_guards_intact();
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, QkvHeadsTest, testing::Values(
    Case{1, 4, 2, 128, 50, 49, true}, Case{3, 6, 2, 80, 9, 5, true}, Case{8, 5, 5, 24, 8, 0, true},
    Case{7, 3, 1, 256, 16, 2, true}, Case{2, 8, 1, 16, 11, 3, false}, Case{1, 1, 1, 8, 1, 0, true}));

TEST(QkvHeads, ReadsRowsInF16) {
  if (must_skip(device().info().f16)) GTEST_SKIP() << "The adapter has no f16.";
  const Case c{5, 4, 2, 64, 20, 3, true};
  QkvHeads op = inputs_of(c);
  const Operand packed = make_operand(device(), ProductPath::f16, c.tokens, c.width(), "qkv");
  run(PackRows{.x = op.qkv.data, .y = packed});
  run(UnpackRows{.x = packed, .y = op.qkv.data});  // what f16 holds of them
  const Heads expected(c), got(c);
  op.q = expected.q.tensor(), op.k = expected.k.tensor(), op.v = expected.v.tensor();
  run(op);
  op.qkv = packed, op.q = got.q.tensor(), op.k = got.k.tensor(), op.v = got.v.tensor();
  run(op);
  EXPECT_EQ(download(op.q), download(expected.q.tensor()));
  EXPECT_EQ(download(op.k), download(expected.k.tensor()));
  EXPECT_EQ(download(op.v), download(expected.v.tensor()));
}

// Of what f16 cannot hold the largest that it can.
TEST(QkvHeads, KeysAndValuesInF16) {
  if (must_skip(device().info().f16)) GTEST_SKIP() << "The adapter has no f16.";
  const Case c{5, 4, 2, 64, 8, 3, false};
  QkvHeads op = inputs_of(c);
  auto values = download(op.qkv.data);
  values[values.size() - 1] = 1e6f, values[values.size() - 2] = -1e9f;
  op.qkv.data = upload(values, {c.tokens, c.width()});
  const Heads expected(c), got(c, DType::f16);
  op.q = expected.q.tensor(), op.k = expected.k.tensor(), op.v = expected.v.tensor();
  run(op);
  op.q = got.q.tensor(), op.k = got.k.tensor(), op.v = got.v.tensor();
  run(op);
  for (const auto& [of, in_f16] : {std::pair{&expected.k, &got.k}, {&expected.v, &got.v}}) {
    const auto exact = download(of->tensor()), rounded = download(in_f16->tensor());
    for (std::uint32_t h = 0; h < c.key_heads; ++h) {
      for (std::size_t i = (h * c.capacity + c.first_key) * c.dim; i < std::size_t{h + 1} * c.capacity * c.dim; ++i) {
        EXPECT_EQ(rounded[i], f16_to_f32(f32_to_f16(std::clamp(exact[i], -65504.0f, 65504.0f)))) << i;
      }
    }
    in_f16->expect_guards_intact();
  }
}

// Tokens of several texts, whose rows lie apart: each goes where it would go alone.
TEST(QkvHeads, RowsMayLieApart) {
  const Case c{3, 4, 2, 32, 20, 0, true};
  QkvHeads op = inputs_of(c);
  const std::array<std::uint32_t, 3> ends{4, 12, 20};
  op.key_end = upload_u32(ends);
  const Heads together(c), apart(c);
  op.q = together.q.tensor(), op.k = together.k.tensor(), op.v = together.v.tensor();
  run(op);
  const auto positions = device().read<std::uint32_t>(op.position);
  for (std::uint32_t t = 0; t < c.tokens; ++t) {
    QkvHeads one = op;
    one.qkv.data = op.qkv.data.rows(t, t + 1);
    one.position = upload_u32(std::array{positions[t]});
    one.key_end = upload_u32(std::array{ends[t]});
    one.q = device().tensor(DType::f32, {c.heads, 1, c.dim}, "q");
    one.k = apart.k.tensor(), one.v = apart.v.tensor();
    run(one);
  }
  EXPECT_EQ(download(op.k), download(apart.k.tensor()));
  EXPECT_EQ(download(op.v), download(apart.v.tensor()));
}

TEST(QkvHeads, KeysAlone) {
  const Case c{5, 4, 2, 64, 20, 3, true};
  for (const auto type : {gpu::AdapterType::software, gpu::AdapterType::discrete}) {
    const Heads expected(c), got(c);
    QkvHeads op = inputs_of(c);
    op.kernel_for = type;
    op.q = expected.q.tensor(), op.k = expected.k.tensor(), op.v = expected.v.tensor();
    run(op);
    const auto queries = random_values(std::size_t{c.heads} * c.tokens * c.dim, 5);
    device().write(got.q.tensor(), std::as_bytes(std::span(queries)));
    op.q = got.q.tensor(), op.k = got.k.tensor(), op.v = got.v.tensor(), op.keys_only = true;
    run(op);
    EXPECT_EQ(download(op.q), queries);
    EXPECT_EQ(download(op.k), download(expected.k.tensor()));
    EXPECT_EQ(download(op.v), download(expected.v.tensor()));
  }
}

TEST(QkvHeads, RefusesWhatDoesNotFit) {
  const Case c{3, 4, 2, 32, 10, 7, true};
  const Heads heads(c);
  gpu::Recorder recorder(device());
  const auto refuse = [&](const std::function<void(QkvHeads&)>& change) {
    QkvHeads bad = inputs_of(c);
    bad.q = heads.q.tensor(), bad.k = heads.k.tensor(), bad.v = heads.v.tensor();
    change(bad);
    EXPECT_THROW(record(recorder, bad), Error);
  };
  refuse([](QkvHeads& op) { op.key_end = upload_u32(std::array<std::uint32_t, 2>{8, 9}); });
  refuse([](QkvHeads& op) { op.k_norm = {}; });
  refuse([](QkvHeads& op) { op.v = op.v.view({2, 9, 32}); });
  refuse([](QkvHeads& op) { op.position = upload_u32(std::array<std::uint32_t, 2>{1, 2}); });
}

}  // namespace
}  // namespace nibble::test::qkv_heads_test
