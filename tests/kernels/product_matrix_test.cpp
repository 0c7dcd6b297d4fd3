#include "nibble/base/error.h"
#include "nibble/kernels/product_matrix.h"
#include "nibble/kernels/product_vec.h"
#include "tests/support/gpu_test.h"

#include <cmath>
#include <functional>

namespace nibble::product_matrix_test {
namespace {

using test::GuardedTensor;

enum class Output { write, accumulate, plus, f16 };

// A product with everything that the matrix path can add to it. The tail has one rank for all projections.
struct Case {
  std::uint32_t m, n, k;
  Output output;
  std::uint32_t rank = 0;                 // r16, 0 without a tail
  std::vector<std::uint32_t> ends = {};   // of the projections
  std::uint32_t projections() const { return static_cast<std::uint32_t>(ends.size()); }
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << fmt::format("{}x{}x{} output {} rank {} ends {}", c.m, c.n, c.k, static_cast<int>(c.output), c.rank, fmt::join(c.ends, " "));
}

// The operands of a case, on the device and as it sees them. Tails are large enough to show among the sums.
struct Inputs {
  Inputs(const Case& c, std::uint32_t x_columns, std::uint32_t right_rows, std::uint32_t right_columns)
      : x(test::upload_operand(test::random_values(std::size_t{c.m} * x_columns, 1), c.m, x_columns, ProductPath::matrix)),
        w{test::upload(test::random_values(std::size_t{c.n} * c.k, 2), {c.n, c.k}, DType::f16), 0.25f} {
    if (c.rank == 0) return;
    const std::uint32_t width = c.rank * c.projections();
    left = test::upload(test::random_values(std::size_t{c.m} * width, 3, 4096.0f), {c.m, width}, DType::f16);
    right = test::upload(test::random_values(std::size_t{right_rows} * right_columns, 4), {right_rows, right_columns}, DType::f16);
  }
  Operand x;
  Weight w;
  Tensor left, right;
};

// sum(row, column, add) calls `add` with each term of the accumulators.
using Terms = std::function<void(std::uint32_t, std::uint32_t, const std::function<void(double)>&)>;

// f32 sums of `terms` exact products are off by terms * 2^-24 of their magnitude at worst; f16 rounds to 2^-11 of the
// value, or 2^-25 below its normal numbers, in units of 2^6.
void expect_sums(const Case& c, std::uint32_t columns, std::uint32_t terms, const Inputs& in, const Tensor& y, const Tensor& y_scale,
                 const std::vector<float>& before, const Terms& sum) {
  const auto got = test::download(y), x_scale = test::download(in.x.scale);
  const auto scales = y_scale ? test::download(y_scale) : std::vector<float>{};
  for (std::uint32_t row = 0; row < c.m; ++row) {
    const double unit = double{x_scale[row]} * in.w.scale;
    if (y_scale) {
      ASSERT_EQ(scales[row], unit * 64) << "row " << row;
    }
    for (std::uint32_t column = row % 7; column < columns; column += 7) {
      double value = 0, magnitude = 0;
      sum(row, column, [&](double term) { value += term, magnitude += std::fabs(term); });
      const std::size_t at = std::size_t{row} * columns + column;
      const double base = before.empty() ? 0.0 : before[at];
      const double result = y_scale ? double{got[at]} * scales[row] : got[at];
      double bound = (terms + 4) * 0x1p-24 * (magnitude * unit + std::fabs(base));
      if (y_scale) bound += unit * (0x1p-11 * (std::fabs(value) + terms * 0x1p-24 * magnitude) + 0x1p-19);
      ASSERT_NEAR(result, value * unit + base, bound) << "row " << row << " column " << column;
    }
  }
}

// Runs a case with guarded outputs and returns what was in y, or in plus, before.
template <typename Product>
void run_case(const Case& c, std::uint32_t columns, std::uint32_t terms, const Inputs& in, Product product, const Terms& sum) {
  GuardedTensor y(c.output == Output::f16 ? DType::f16 : DType::f32, {c.m, columns}), y_scale(DType::f32, {c.m});
  std::vector<float> before;
  if (c.output == Output::accumulate || c.output == Output::plus) {
    before = test::random_values(std::size_t{c.m} * columns, 9, 100.0f);
  }
  product.path = ProductPath::matrix;
  product.x = in.x;
  product.w = in.w;
  product.y = y.tensor();
  product.lora.left = in.left;
  product.lora.right = in.right;
  if (c.output == Output::accumulate) {
    test::device().write(y.tensor(), std::as_bytes(std::span(before)));
    product.accumulate = true;
  }
  if (c.output == Output::plus) product.plus = test::upload(before, {c.m, columns});
  if (c.output == Output::f16) product.y_scale = y_scale.tensor();
  test::run(product);
  expect_sums(c, columns, terms, in, y.tensor(), product.y_scale, before, sum);
  y.expect_guards_intact();
  y_scale.expect_guards_intact();
}

void run_nt(const Case& c) {
  const Inputs in(c, c.k, c.n, c.rank);
  ProductNT product{};
  product.lora.ends.fill(c.n);
  std::copy(c.ends.begin(), c.ends.end(), product.lora.ends.begin());
  const auto x = test::download(in.x.data), w = test::download(in.w.data);
  const auto left = in.left ? test::download(in.left) : std::vector<float>{}, right = in.left ? test::download(in.right) : left;
  run_case(c, c.n, c.k + c.rank, in, product, [&](auto row, auto column, const auto& add) {
    for (std::uint32_t i = 0; i < c.k; ++i) add(double{x[row * c.k + i]} * w[column * c.k + i]);
    const auto projection = static_cast<std::uint32_t>(std::upper_bound(c.ends.begin(), c.ends.end(), column) - c.ends.begin());
    for (std::uint32_t i = 0; i < c.rank; ++i) {
      add(double{left[(row * c.projections() + projection) * c.rank + i]} * right[column * c.rank + i]);
    }
  });
}

void run_nn(const Case& c) {
  const std::uint32_t width = c.rank * c.projections();
  const Inputs in(c, c.n, width, c.k);
  const auto x = test::download(in.x.data), w = test::download(in.w.data);
  const auto left = in.left ? test::download(in.left) : std::vector<float>{}, right = in.left ? test::download(in.right) : left;
  run_case(c, c.k, c.n + width, in, ProductNN{}, [&](auto row, auto column, const auto& add) {
    for (std::uint32_t i = 0; i < c.n; ++i) add(double{x[row * c.n + i]} * w[i * c.k + column]);
    for (std::uint32_t i = 0; i < width; ++i) add(double{left[row * width + i]} * right[i * c.k + column]);
  });
}

// Projections end where blocks of columns do: the software adapter's have 16, others up to 256.
std::vector<Case> cases() {
  std::vector<Case> cases;
  for (const Output output : {Output::write, Output::accumulate, Output::plus, Output::f16}) {
    cases.push_back({37, 88, 72, output});
    cases.push_back({33, 520, 64, output, 16, {256, 512, 520}});
    cases.push_back({65, 304, 40, output, 48, {256, 304}});
    cases.push_back({5, 24, 136, output, 256, {24}});
  }
  cases.push_back({1, 776, 8, Output::f16, 256, {256, 512, 776}});
  return cases;
}

class MatrixExtras : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (test::must_skip(matrix_fits(test::device(), 64, 64))) GTEST_SKIP() << "The adapter has no matrices.";
  }
};

TEST_P(MatrixExtras, NTEqualsTheSum) { run_nt(GetParam()); }
TEST_P(MatrixExtras, NNEqualsTheSum) { run_nn(GetParam()); }

INSTANTIATE_TEST_SUITE_P(Cases, MatrixExtras, testing::ValuesIn(cases()));

// 9,000 rows of 4,096 in f32 are more than the software adapter binds: rows go in slices, with their parts of the tail.
TEST(MatrixSlices, RowsAndTheirTailsLargerThanABinding) {
  if (test::must_skip(matrix_fits(test::device(), 64, 64))) GTEST_SKIP() << "The adapter has no matrices.";
  const std::uint32_t m = 9000, n = 4096, k = 8, rank = 16;
  const Case c{m, n, k, Output::plus, rank, {2048, n}};
  const Inputs in(c, k, n, rank);
  GuardedTensor y(DType::f32, {m, n});
  const Tensor plus = test::device().tensor(DType::f32, {m, n}, "plus");
  test::run(ProductNT{.path = ProductPath::matrix, .x = in.x, .w = in.w, .y = y.tensor(), .plus = plus,
                      .lora = {.left = in.left, .right = in.right, .ends = {2048, n, n}}});
  const auto got = test::download(y.tensor()), x = test::download(in.x), w = test::download(in.w.data);
  const auto left = test::download(in.left), right = test::download(in.right), scale = test::download(in.x.scale);
  for (std::uint32_t i = 0; i < m; i += 271) {
    const std::uint32_t j = i * 37 % n;
    double value = 0, magnitude = 0;
    const auto add = [&](double term) { value += term, magnitude += std::fabs(term); };
    for (std::uint32_t l = 0; l < k; ++l) add(double{x[i * k + l]} * w[j * k + l] * 0.25);
    for (std::uint32_t l = 0; l < rank; ++l) add(double{left[(i * 2 + j / 2048) * rank + l]} * right[j * rank + l] * scale[i] * 0.25);
    ASSERT_NEAR(got[std::size_t{i} * n + j], value, (k + rank + 4) * 0x1p-24 * magnitude) << i;
  }
  y.expect_guards_intact();
}

// 70,000 outputs of 1,024 are 143 MB: columns of NT go in slices, NN adds several to what the first, with the tail, wrote.
TEST(MatrixSlices, WeightsLargerThanABindingHaveTheirTailOnce) {
  if (test::must_skip(matrix_fits(test::device(), 64, 64))) GTEST_SKIP() << "The adapter has no matrices.";
  const std::uint32_t n = 70'000, k = 1024, m = 2, rank = 16;
  const Weight w{test::device().tensor(DType::f16, {n, k}, "w")};  // zeros: the tail alone is left
  const Operand x = test::upload_operand(test::random_values(m * k, 1), m, k, ProductPath::matrix);
  const Operand dy = test::upload_operand(test::random_values(std::size_t{m} * n, 2), m, n, ProductPath::matrix);
  const Tensor left = test::upload(test::random_values(m * rank, 3), {m, rank}, DType::f16);
  const Tensor b = test::upload(test::random_values(std::size_t{n} * rank, 4), {n, rank}, DType::f16);
  const Tensor a = test::upload(test::random_values(std::size_t{rank} * k, 5), {rank, k}, DType::f16);
  GuardedTensor y(DType::f16, {m, n}), y_scale(DType::f32, {m}), y32(DType::f32, {m, n}), dx(DType::f32, {m, k});
  const auto tail = [&](const Tensor& right) { return LoraTail{.left = left, .right = right, .ends = {n, n, n}}; };
  test::run(ProductNT{.path = ProductPath::matrix, .x = x, .w = w, .y = y32.tensor(), .lora = tail(b)});
  test::run(ProductNN{.path = ProductPath::matrix, .x = dy, .w = w, .y = dx.tensor(), .lora = tail(a)});
  if (!f16_outputs_fit(test::device(), ProductPath::matrix, n, k)) {
    gpu::Recorder recorder(test::device());
    EXPECT_THROW(record(recorder, ProductNT{.path = ProductPath::matrix, .x = x, .w = w, .y = y.tensor(), .y_scale = y_scale.tensor()}), UsageError);
  }
  const auto h = test::download(left), bs = test::download(b), as = test::download(a);
  const auto forward = test::download(y32.tensor()), back = test::download(dx.tensor());
  const auto x_scale = test::download(x.scale), dy_scale = test::download(dy.scale);
  for (std::uint32_t j = 0; j < n; j += 97) {
    double y_sum = 0, dx_sum = 0;
    for (std::uint32_t i = 0; i < rank; ++i) {
      y_sum += double{h[rank + i]} * bs[j * rank + i];
      dx_sum += double{h[rank + i]} * as[i * k + j % k];
    }
    ASSERT_NEAR(forward[n + j], y_sum * x_scale[1], rank * rank * 0x1p-24 * x_scale[1]) << j;
    ASSERT_NEAR(back[k + j % k], dx_sum * dy_scale[1], rank * rank * 0x1p-24 * dy_scale[1]) << j;
  }
  for (const auto* output : {&y32, &dx}) output->expect_guards_intact();
}

// Other ways to do a product give the sums of the default one: `change` makes them of a product and the weight's values.
void expect_same_sums(std::uint32_t rank, const std::function<void(MatrixProduct&, std::span<const float>)>& change) {
  const std::uint32_t m = 173, n = 576, k = 208;
  const Case c{m, n, k, Output::f16, rank, {256, 512, n}};
  const Inputs nt(c, k, n, rank), nn(c, n, 3 * rank, k);
  for (const Output output : {Output::write, Output::accumulate, Output::plus, Output::f16}) {
    const auto expect_same = [&](const auto& record_matrix, const Inputs& in, std::uint32_t columns) {
      const DType dtype = output == Output::f16 ? DType::f16 : DType::f32;
      const auto before = test::random_values(std::size_t{m} * columns, 9, 100.0f);
      MatrixProduct product{.x = in.x, .w = in.w, .accumulate = output == Output::accumulate,
                            .lora = {in.left, in.right, {256, 512, n}}};
      if (output == Output::plus) product.plus = test::upload(before, {m, columns});
      GuardedTensor y(dtype, {m, columns}), y_scale(DType::f32, {m});
      const Tensor plain = test::device().tensor(dtype, {m, columns}, "y"), scale = test::device().tensor(DType::f32, {m}, "scale");
      const auto run = [&](const Tensor& result, const Tensor& result_scale) {
        if (product.accumulate) test::device().write(result, std::as_bytes(std::span(before)));
        product.y = result;
        if (output == Output::f16) product.y_scale = result_scale;
        gpu::Recorder recorder(test::device());
        record_matrix(recorder, product);
        recorder.submit();
      };
      run(plain, scale);
      change(product, test::download(in.w.data));
      run(y.tensor(), y_scale.tensor());
      // Sums of another order may round to the neighbour in f16.
      EXPECT_LT(test::relative_error(test::download(y.tensor()), test::download(plain)), dtype == DType::f16 ? 0x1p-11 : 0x1p-18);
      if (output == Output::f16) {
        EXPECT_EQ(test::download(y_scale.tensor()), test::download(scale));
      }
      y.expect_guards_intact();
      y_scale.expect_guards_intact();
    };
    SCOPED_TRACE(fmt::format("rank {} output {}", rank, static_cast<int>(output)));
    expect_same([](auto& recorder, const auto& op) { record_matrix_nt(recorder, op); }, nt, n);
    expect_same([](auto& recorder, const auto& op) { record_matrix_nn(recorder, op); }, nn, k);
  }
}

class MatrixWays : public testing::Test {
 protected:
  void SetUp() override {
    if (test::must_skip(matrix_fits(test::device(), 64, 64))) GTEST_SKIP() << "The adapter has no matrices.";
  }
};

// Blocks of several subgroups and longer steps, as GPUs have them: steps of 2 and 4 vectors, whose rows are spread over
// invocations in their own ways, and tails that do and do not divide into steps.
TEST_F(MatrixWays, SeveralSubgroupsAndLongSteps) {
  for (const auto& [step, rank] : {std::pair{2u, 48u}, {4u, 16u}}) {
    MatrixTile tile = default_matrix_tile(test::device().info()).value();
    tile.part_m = tile.matrix.m;
    tile.part_n = tile.matrix.n;
    tile.block_m = 2 * tile.part_m;
    tile.block_n = 2 * tile.part_n;
    tile.block_k = step * tile.matrix.k;
    tile.band = 8;
    expect_same_sums(rank, [&](MatrixProduct& product, auto) { product.tile = tile; });
  }
}

// For NN, where x has a column for each row of w, the tiles of the transpose.
MatrixProduct with_tiled_weight(MatrixProduct product, std::span<const float> w) {
  const std::uint32_t edge = direct_matrix_tile(test::device().info()).value().matrix.m;
  const std::uint32_t rows = product.w.data.dim(0), columns = product.w.data.dim(1);
  std::vector<float> values(w.begin(), w.end());
  product.w.turned = product.x.data.dim(1) == rows;
  if (product.w.turned) {
    for (std::size_t i = 0; i < w.size(); ++i) values[i % columns * rows + i / columns] = w[i];
  }
  product.w.data = test::upload(test::in_tiles(values, product.w.turned ? rows : columns, edge), {rows, columns}, DType::f16);
  product.w.tile = edge;
  return product;
}

TEST_F(MatrixWays, WeightsReadWhereTheirTilesLie) {
  expect_same_sums(16, [&](MatrixProduct& product, std::span<const float> w) { product = with_tiled_weight(product, w); });
}

TEST_F(MatrixWays, WeightsReadWhereTheirTilesLieByWideBlocks) {
  MatrixTile tile = direct_matrix_tile(test::device().info()).value();
  tile.part_m = 2 * tile.matrix.n;
  tile.part_n = tile.matrix.m;
  tile.block_m = 2 * tile.part_m;
  tile.block_n = 2 * tile.part_n;
  tile.block_k = 4 * tile.matrix.k;
  expect_same_sums(48, [&](MatrixProduct& product, std::span<const float> w) {
    product = with_tiled_weight(product, w);
    product.tile = tile;
  });
}

// Few rows go by vectors on a GPU, which know no tiles: neither they nor other paths may read the weight as rows.
TEST_F(MatrixWays, FewRowsOfAWeightInTiles) {
  const std::uint32_t m = 3, n = 64, k = 96;
  const auto values = test::random_values(std::size_t{n} * k, 2);
  const Operand x = test::upload_operand(test::random_values(m * k, 1), m, k, ProductPath::matrix);
  const Weight rows{test::upload(values, {n, k}, DType::f16), 0.25f};
  MatrixProduct tiled{.x = x, .w = rows};
  tiled = with_tiled_weight(tiled, values);
  const Tensor expected = test::device().tensor(DType::f32, {m, n}, "y"), y = test::device().tensor(DType::f32, {m, n}, "y");
  test::run(ProductNT{.path = ProductPath::matrix, .x = x, .w = rows, .y = expected});
  test::run(ProductNT{.path = ProductPath::matrix, .x = x, .w = tiled.w, .y = y});
  EXPECT_LT(test::relative_error(test::download(y), test::download(expected)), 0x1p-18);
  gpu::Recorder recorder(test::device());
  EXPECT_THROW(record(recorder, ProductNT{.path = ProductPath::f16, .x = x, .w = tiled.w, .y = y}), Error);
  EXPECT_THROW(record(recorder, DenseVec{.x = x, .w = tiled.w, .y = y}), Error);
}

// A block has the tail of one projection.
TEST_F(MatrixWays, BlocksAcrossTheEndOfAProjectionAreRefused) {
  const Case c{40, 256, 64, Output::write, 16, {128, 256}};
  const Inputs in(c, c.k, c.n, c.rank);
  MatrixTile tile = default_matrix_tile(test::device().info()).value();
  MatrixProduct product{.x = in.x, .w = in.w, .y = test::device().tensor(DType::f32, {c.m, c.n}, "y"),
                        .lora = {in.left, in.right, {128, 256, 256}}, .tile = tile};
  gpu::Recorder recorder(test::device());
  record_matrix_nt(recorder, product);
  product.lora.ends[0] = 128 + tile.part_n / 2;
  EXPECT_THROW(record_matrix_nt(recorder, product), Error);
  product.tile = {};
  EXPECT_THROW(record_matrix_nt(recorder, product), Error);
}

TEST(MatrixBlocks, AreSplitBeyondWholeWaves) {
  MatrixPlan plan{.tile = {.block_m = 64, .block_n = 256}, .splits = 4, .wave = 264};
  EXPECT_EQ(blocks_of(plan, 2048, 2500).count(), 320u);
  EXPECT_EQ(blocks_of(plan, 2048, 2500).whole, 264u);
  EXPECT_EQ(blocks_of(plan, 2048, 2500).split(), 56u);
  EXPECT_EQ(blocks_of(plan, 100, 2560).split(), 20u);
  plan.wave = 0;
  EXPECT_EQ(blocks_of(plan, 2048, 2560).split(), 320u);
  plan.splits = 1;
  EXPECT_EQ(blocks_of(plan, 2048, 2560).split(), 0u);
}

TEST_F(MatrixWays, SplitInnerDimensions) {
  const Tensor scratch = test::device().tensor(DType::f32, {5 * 256 * 640}, "scratch");
  // Splits of all blocks, of those beyond whole waves, and of none.
  for (const auto& [splits, wave] : {std::pair{2u, 0u}, {5u, 0u}, {5u, 50u}, {2u, 1u}}) {
    for (const bool tiled : {false, true}) {
      expect_same_sums(16, [&](MatrixProduct& product, std::span<const float> w) {
        if (tiled) product = with_tiled_weight(product, w);
        product.scratch = scratch;
        product.splits = splits;
        product.wave = wave;
      });
    }
  }
}

// What cannot be done is refused before it is recorded.
TEST(MatrixExtrasRefuse, WhatDoesNotFit) {
  if (test::must_skip(matrix_fits(test::device(), 64, 64))) GTEST_SKIP() << "The adapter has no matrices.";
  const Case c{8, 512, 64, Output::f16, 16, {256, 512}};
  const Inputs in(c, c.k, c.n, c.rank);
  const Tensor y = test::device().tensor(DType::f16, {8, 512}, "y"), y32 = test::device().tensor(DType::f32, {8, 512}, "y");
  const Tensor scale = test::device().tensor(DType::f32, {8}, "scale");
  const ProductNT good{.path = ProductPath::matrix, .x = in.x, .w = in.w, .y = y, .y_scale = scale, .lora = {in.left, in.right, {256, 512, 512}}};
  test::run(good);
  gpu::Recorder recorder(test::device());
  const auto refuse = [&](const std::function<void(ProductNT&)>& change) {
    ProductNT bad = good;
    change(bad);
    EXPECT_THROW(record(recorder, bad), Error);
  };
  refuse([&](ProductNT& p) { p.path = ProductPath::f16; });
  refuse([&](ProductNT& p) { p.accumulate = true; });
  refuse([&](ProductNT& p) { p.plus = y32; });
  refuse([&](ProductNT& p) { p.y_scale = {}; });
  refuse([&](ProductNT& p) { p.y = y32; });
  refuse([&](ProductNT& p) { p.y_scale = scale.rows(0, 4); });
  refuse([&](ProductNT& p) { p.lora.ends = {8, 512, 512}; });
  refuse([&](ProductNT& p) { p.lora.ends = {512, 256, 512}; });
  refuse([&](ProductNT& p) { p.lora.ends = {256, 256, 256}; });
  refuse([&](ProductNT& p) { p.lora.left = in.left.view({8, 16}); });
  refuse([&](ProductNT& p) { p.lora.right = in.right.view({512, 8}); });
  refuse([&](ProductNT& p) { p.lora.right = {}; });
}

}  // namespace
}  // namespace nibble::product_matrix_test
