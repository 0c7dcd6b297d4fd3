// Products that decode a weight in NF4 on their way, against those of the same weight decoded before.
#include "nibble/base/error.h"
#include "nibble/kernels/nf4.h"
#include "nibble/kernels/product_matrix.h"
#include "tests/support/gpu_test.h"

#include <cmath>
#include <functional>

namespace nibble::product_codes_test {
namespace {

using test::GuardedTensor;

constexpr float unit = 0.125f;  // at least the largest of absmax

struct Weights {
  Weight codes, decoded;
};

Weights make_weights(std::uint32_t n, std::uint32_t k, CodeBook book) {
  Rng rng(n + k);
  std::vector<std::uint32_t> words(std::size_t{n} * k / 8);
  for (std::uint32_t& word : words) word = rng.below(1u << 16) << 16 | rng.below(1u << 16);
  auto absmax = test::random_values(std::size_t{n} * k / nf4_block, 1, unit);
  for (float& value : absmax) value = std::fabs(value);
  const Nf4 w{.packed = test::upload_u32(words), .absmax = test::upload(absmax, {static_cast<std::uint32_t>(absmax.size())}), .codes = book};
  const Weight decoded{.data = test::device().tensor(DType::f16, {n, k}, "decoded"), .scale = unit};
  test::run(DequantizeNf4{.w = w, .out = decoded});
  return {.codes = {.data = w.packed.view({n, k / 8}), .scale = unit, .absmax = w.absmax.view({n, k / nf4_block}), .codes = book}, .decoded = decoded};
}

enum class Output { write, accumulate, plus, f16 };

struct Case {
  std::uint32_t m, n, k;
  Output output;
  std::uint32_t splits;
  std::uint32_t rank = 0;  // of a tail with two projections, which end at columns 64 and n
  CodeBook book = CodeBook::nf4;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << fmt::format("{}x{}x{} output {}, {} splits, rank {}", c.m, c.n, c.k, static_cast<int>(c.output), c.splits, c.rank);
}

struct Result {
  std::vector<float> y, scale;
  bool operator==(const Result&) const = default;
};

class Products {
 public:
  explicit Products(const Case& c)
      : c_(c),
        weights_(make_weights(c.n, c.k, c.book)),
        x_(test::upload_operand(test::random_values(std::size_t{c.m} * c.k, 2, 3.0f), c.m, c.k, ProductPath::matrix)),
        before_(test::random_values(std::size_t{c.m} * c.n, 3, 10.0f)) {
    if (c.rank == 0) return;
    tail_ = {.left = test::upload(test::random_values(std::size_t{c.m} * 2 * c.rank, 4, 4096.0f), {c.m, 2 * c.rank}, DType::f16),
             .right = test::upload(test::random_values(std::size_t{c.n} * c.rank, 5), {c.n, c.rank}, DType::f16), .ends = {64, c.n, c.n}};
  }

  Result decoded(const std::function<void(MatrixProduct&)>& change) const { return run(weights_.decoded, change); }
  Result codes(const std::function<void(MatrixProduct&)>& change) const { return run(weights_.codes, change); }

 private:
  Result run(const Weight& w, const std::function<void(MatrixProduct&)>& change) const {
    const bool f16 = c_.output == Output::f16;
    GuardedTensor y(f16 ? DType::f16 : DType::f32, {c_.m, c_.n}), scale(DType::f32, {c_.m});
    const Tensor sums = test::device().tensor(DType::f32, {1u << 20}, "partial sums");
    MatrixProduct product{.x = x_, .w = w, .y = y.tensor(), .accumulate = c_.output == Output::accumulate, .lora = tail_, .scratch = sums};
    if (f16) product.y_scale = scale.tensor();
    if (product.accumulate) test::device().write(y.tensor(), std::as_bytes(std::span(before_)));
    if (c_.output == Output::plus) product.plus = test::upload(before_, {c_.m, c_.n});
    change(product);
    gpu::Recorder recorder(test::device());
    record_matrix_nt(recorder, product);
    recorder.submit();
    y.expect_guards_intact();
    return {.y = test::download(y.tensor()), .scale = f16 ? test::download(scale.tensor()) : std::vector<float>{}};
  }

  Case c_;
  Weights weights_;
  Operand x_;
  std::vector<float> before_;
  LoraTail tail_;
};

class ProductCodes : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (test::must_skip(matrix_fits(test::device(), 64, 64))) GTEST_SKIP() << "The adapter has no matrices.";
  }
};

// Values are rounded alike, and one plan has one order of sums.
TEST_P(ProductCodes, GiveTheBitsOfTheDecodedWeight) {
  const Products products(GetParam());
  const MatrixTile tile = decoding_plan(test::device().info(), {MatrixLayout::nt, GetParam().m, GetParam().n, GetParam().k}).tile;
  const auto planned = [&](MatrixProduct& product) { product.tile = tile, product.splits = GetParam().splits; };
  EXPECT_EQ(products.codes(planned), products.decoded(planned));
}

INSTANTIATE_TEST_SUITE_P(Cases, ProductCodes, testing::Values(
    Case{1, 64, 64, Output::write, 1}, Case{5, 40, 192, Output::f16, 1}, Case{16, 128, 320, Output::plus, 2, 16}, Case{37, 72, 128, Output::accumulate, 1},
    Case{9, 72, 256, Output::f16, 2, 32}, Case{4, 48, 128, Output::write, 2, 0, CodeBook::fp4}));

// As GPUs have it: several subgroups side by side, and splits of five and of four steps, in which either set of registers is loaded anew.
TEST_F(ProductCodes, ByStepsOfBlocks) {
  const Products products({20, 88, 576, Output::plus, 2});
  MatrixTile tile = default_matrix_tile(test::device().info()).value();
  tile.block_m = 2 * tile.matrix.m, tile.part_m = tile.matrix.m, tile.part_n = tile.matrix.n, tile.block_n = 2 * tile.part_n, tile.block_k = 64, tile.two_sets = true;
  ASSERT_TRUE(suits(test::device().info(), tile));
  const auto planned = [&](MatrixProduct& product) { product.tile = tile, product.splits = 2; };
  EXPECT_EQ(products.codes(planned), products.decoded(planned));
}

TEST_F(ProductCodes, RefuseWhatDoesNotFit) {
  const Weights weights = make_weights(64, 128, CodeBook::nf4);
  const Operand x = test::upload_operand(test::random_values(2 * 128, 1), 2, 128, ProductPath::matrix);
  const Tensor y = test::device().tensor(DType::f32, {2, 64}, "y");
  gpu::Recorder recorder(test::device());
  const auto refuse = [&](const std::function<void(ProductNT&)>& change) {
    ProductNT bad{.path = ProductPath::matrix, .x = x, .w = weights.codes, .y = y};
    change(bad);
    EXPECT_THROW(record(recorder, bad), Error);
  };
  refuse([](ProductNT& op) { op.path = ProductPath::f16; });
  refuse([](ProductNT& op) { op.w.absmax = op.w.absmax.view({32, 4}); });
  refuse([&](ProductNT& op) { op.w.data = op.w.data.view({32, 32}); });
  EXPECT_THROW(record(recorder, ProductNN{.path = ProductPath::matrix, .x = test::upload_operand(test::random_values(2 * 64, 1), 2, 64, ProductPath::matrix),
                                          .w = weights.codes, .y = test::device().tensor(DType::f32, {2, 16}, "dx")}),
               Error);
}

}  // namespace
}  // namespace nibble::product_codes_test
