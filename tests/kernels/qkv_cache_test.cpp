#include "nibble/kernels/qkv_attention.h"

#include "nibble/kernels/product_matrix.h"
#include "tests/kernels/qkv_run.h"

#include <numeric>

namespace nibble::test::qkv_cache_test {
namespace {

constexpr std::uint32_t dim = 64, capacity = 200;

// How passes are done, and what keys and values are kept in.
struct Way {
  QkvMode mode;
  DType keys = DType::f32;

  // Twice what one pass may be off, and values in f16 by 2^-11 each, with scores that differ by as much.
  double allowed() const { return 2 * mode.result(dim) + (keys == DType::f16 ? 0x1p-10 : 0); }
};

std::ostream& operator<<(std::ostream& out, const Way& way) {
  return out << fmt::format("{}, keys in {}", name_of(way.mode.path), name_of(way.keys));
}

// Tokens [first, first + count) of all segments' and where the caches have them: those of a segment from row 2 * its first token on.
class QkvCaches : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    if (GetParam().keys == DType::f16 && must_skip(device().info().f16)) GTEST_SKIP() << "The adapter has no f16.";
    if (GetParam().mode.path != ProductPath::f32 && must_skip(matrix_fits(device(), dim, dim))) GTEST_SKIP() << "The adapter has no matrices.";
  }

  struct Caches {
    Tensor k, v;
  };
  Caches make_caches() const {
    const auto make = [&] { return device().tensor(GetParam().keys, {2, capacity, dim}, "cache"); };
    return {make(), make()};
  }

  static QkvCase case_of(std::vector<std::uint32_t> segments) {
    return {.attention = {.heads = 4, .key_heads = 2, .head_dim = dim, .segments = std::move(segments)}};
  }

  // What the tokens of some segments, from token `first` on, become; each begins `seen` tokens before.
  std::vector<float> pass(const QkvCase& shape, std::uint32_t first, std::span<const std::uint32_t> lengths, const Caches& caches,
                          std::uint32_t seen = 0) const {
    const QkvMode& mode = GetParam().mode;
    const QkvInputs inputs(shape);
    const std::uint32_t count = std::accumulate(lengths.begin(), lengths.end(), 0u);
    const Operand out = make_operand(device(), mode.path, count, 4 * dim, "o");
    QkvAttention op = forward_of(shape, mode, inputs, out, device().tensor(DType::f32, {4, count}, "lse"));
    op.qkv = upload_operand(std::span(inputs.qkv).subspan(std::size_t{first} * shape.row(), std::size_t{count} * shape.row()), count, shape.row(), mode.path);
    std::vector<std::uint32_t> position, begin, end, own_begin, own_end;
    for (const std::uint32_t length : lengths) {
      const auto text = static_cast<std::uint32_t>(position.size()), row = 2 * (first - seen + text);
      for (std::uint32_t i = 0; i < length; ++i) {
        position.push_back(seen + i), begin.push_back(row), end.push_back(row + seen + i + 1);
        own_begin.push_back(text), own_end.push_back(text + i + 1);
      }
    }
    op.position = upload_u32(position), op.key_begin = upload_u32(begin), op.key_end = upload_u32(end);
    if (seen == 0) op.own_begin = upload_u32(own_begin), op.own_end = upload_u32(own_end);
    auto sizes = room_shape(shape, mode);
    sizes.backward = false;
    op.room = make_qkv_attention_room(device(), sizes);
    op.k_cache = caches.k, op.v_cache = caches.v, op.first_key = end[0] - 1, op.apart = lengths.size() > 1;
    op.most_keys = seen + *std::max_element(lengths.begin(), lengths.end());
    test::run(op);
    return download(out);
  }

  std::vector<float> expected(const QkvCase& shape) const {
    const QkvInputs inputs(shape);
    const auto qkv = download(upload_operand(inputs.qkv, shape.tokens(), shape.row(), GetParam().mode.path));
    return floats(attend_qkv(shape, doubles(qkv), inputs.norms, {}).result.o);
  }
};

INSTANTIATE_TEST_SUITE_P(All, QkvCaches,
                         testing::Values(Way{{ProductPath::f32, false}}, Way{{ProductPath::f16, false}}, Way{{ProductPath::matrix, true}},
                                         Way{{ProductPath::f32, false}, DType::f16}, Way{{ProductPath::f16, false}, DType::f16},
                                         Way{{ProductPath::matrix, true}, DType::f16}),
                         [](const auto& way) { return fmt::format("{}_keys_{}", name_of(way.param.mode.path), name_of(way.param.keys)); });

// Tokens one after the other, and some at once, are the same as all in one pass.
TEST_P(QkvCaches, OneTextInTurn) {
  const QkvCase shape = case_of({40});
  const Caches caches = make_caches();
  std::vector<float> o;
  for (std::uint32_t first = 0; first < 40;) {
    const std::uint32_t count = first == 0 ? 16 : first == 20 ? 17 : 1;
    const auto values = pass(shape, first, {&count, 1}, caches, first);
    o.insert(o.end(), values.begin(), values.end());
    first += count;
  }
  EXPECT_LT(relative_error(o, expected(shape)), GetParam().allowed());
}

// Several new texts at once leave what each leaves alone, in rows of the caches that lie apart.
TEST_P(QkvCaches, NewTextsInOnePass) {
  const QkvCase shape = case_of({5, 40, 1, 9});
  const Caches together = make_caches(), apart = make_caches();
  EXPECT_LT(relative_error(pass(shape, 0, shape.attention.segments, together), expected(shape)), GetParam().allowed());
  std::uint32_t first = 0;
  for (const std::uint32_t length : shape.attention.segments) {
    pass(shape, first, {&length, 1}, apart);
    first += length;
  }
  // One token alone is another kernel, whose norms add up in another order; of keys in f16 one in some 2^7 then rounds the other way, by
  // 2^-10 at most.
  EXPECT_LT(relative_error(download(together.k), download(apart.k)), GetParam().keys == DType::f16 ? 0x1p-14 : 16 * 0x1p-24);
  EXPECT_EQ(download(together.v), download(apart.v));
}

}  // namespace
}  // namespace nibble::test::qkv_cache_test
