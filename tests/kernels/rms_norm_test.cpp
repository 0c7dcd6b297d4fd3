#include "nibble/kernels/pack_rows.h"
#include "nibble/kernels/product_matrix.h"
#include "nibble/kernels/rms_norm.h"

#include "nibble/base/error.h"
#include "tests/support/guarded_operand.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

namespace nibble::rms_norm_test {
namespace {

constexpr float epsilon = 1e-6f;

struct Case {
  std::uint32_t x_rows, columns;
  std::vector<std::uint32_t> rows;  // empty: all in order
};

const std::vector<Case> cases = {{1, 1, {}},    {3, 5, {}},           {7, 64, {}},         {70, 129, {}},
                                 {5, 260, {4, 0, 2}}, {9, 33, {8}}, {130, 1028, {}}, {66, 12, {65, 3, 64, 1}}};

std::vector<std::uint32_t> sources(const Case& c) {
  if (!c.rows.empty()) return c.rows;
  std::vector<std::uint32_t> all(c.x_rows);
  std::iota(all.begin(), all.end(), 0u);
  return all;
}

double inverse_rms(std::span<const double> x) {
  double squares = 0;
  for (const double value : x) squares += value * value;
  return 1.0 / std::sqrt(squares / double(x.size()) + double{epsilon});
}

std::vector<double> reference(const std::vector<double>& x, std::span<const float> weight, const Case& c) {
  std::vector<double> y;
  for (const std::size_t source : sources(c)) {
    const auto row = std::span(x).subspan(source * c.columns, c.columns);
    const double inverse = inverse_rms(row);
    for (std::size_t i = 0; i < c.columns; ++i) y.push_back(row[i] * inverse * weight[i]);
  }
  return y;
}

struct Inputs {
  std::vector<float> x, weight, dy;
  Tensor x_tensor, weight_tensor, rows_tensor, dy_tensor;
  std::uint32_t rows;
};

Inputs make_inputs(const Case& c) {
  Inputs in;
  in.rows = static_cast<std::uint32_t>(sources(c).size());
  in.x = test::random_values(std::size_t{c.x_rows} * c.columns, 1, 3.0f);
  in.weight = test::random_values(c.columns, 2, 2.0f);
  in.dy = test::random_values(std::size_t{in.rows} * c.columns, 3);
  in.x_tensor = test::upload(in.x, {c.x_rows, c.columns});
  in.weight_tensor = test::upload(in.weight, {c.columns});
  in.dy_tensor = test::upload(in.dy, {in.rows, c.columns});
  if (!c.rows.empty()) in.rows_tensor = test::upload_u32(c.rows);
  return in;
}

TEST(RmsNorm, ForwardEqualsTheReference) {
  for (const auto path : test::product_paths()) {
    for (const Case& c : cases) {
      SCOPED_TRACE(test::name_of(path) + " " + std::to_string(c.x_rows) + "x" + std::to_string(c.columns));
      const Inputs in = make_inputs(c);
      const test::GuardedOperand y(path, in.rows, c.columns);
      const test::GuardedTensor inv_rms(DType::f32, {in.rows});
      test::run(RmsNorm{.x = in.x_tensor, .weight = in.weight_tensor, .rows = in.rows_tensor, .y = y.operand(),
                               .inv_rms = inv_rms.tensor(), .eps = epsilon});
      // A sum of n squares errs by less than n/8 + 8 roundings of 6e-8 and is halved by the root; the products add four.
      y.expect_values(reference({in.x.begin(), in.x.end()}, in.weight, c), (c.columns / 16.0 + 12) * 6e-8);
      y.expect_guards_intact();
      inv_rms.expect_guards_intact();
    }
  }
}

TEST(RmsNorm, RowsOfZerosAndOfHugeAndTinyValues) {
  const std::vector<float> x = {0, 0, 0, 0, 1e15f, -2e15f, 3e15f, 1e10f, 1e-20f, 0, -2e-20f, 0};
  const std::vector<float> weight = {1, 1e6f, 1e-6f, 1};
  for (const auto path : test::product_paths()) {
    const test::GuardedOperand y(path, 3, 4);
    const test::GuardedTensor inv_rms(DType::f32, {3});
    test::run(RmsNorm{.x = test::upload(x, {3, 4}), .weight = test::upload(weight, {4}), .y = y.operand(),
                             .inv_rms = inv_rms.tensor(), .eps = epsilon});
    y.expect_values(reference({x.begin(), x.end()}, weight, {3, 4, {}}), 1e-6);
    EXPECT_NEAR(test::download(inv_rms.tensor())[0], 1000.0f, 1e-3f);
  }
}

TEST(RmsNorm, NotANumberIsSeen) {
  for (const auto path : test::product_paths()) {
    const std::vector<float> x = {1, 2, NAN, 4}, weight = {1, 1, 1, 1};
    const auto y = make_operand(test::device(), path, 1, 4, "y");
    test::run(RmsNorm{.x = test::upload(x, {1, 4}), .weight = test::upload(weight, {4}), .y = y,
                             .inv_rms = test::device().tensor(DType::f32, {1}, "inv_rms")});
    EXPECT_TRUE(std::isnan(test::download(y)[0]));
  }
}

TEST(RmsNorm, BackwardEqualsFiniteDifferences) {
  for (const Case& c : cases) {
    SCOPED_TRACE(std::to_string(c.x_rows) + "x" + std::to_string(c.columns));
    const Inputs in = make_inputs(c);
    const auto start = test::random_values(in.x.size(), 4);
    const test::GuardedTensor dx(DType::f32, {c.x_rows, c.columns});
    test::device().write(dx.tensor(), std::as_bytes(std::span(start)));
    const auto inv_rms = test::device().tensor(DType::f32, {in.rows}, "inv_rms");
    const auto y = make_operand(test::device(), ProductPath::f32, in.rows, c.columns, "y");
    test::run(RmsNorm{.x = in.x_tensor, .weight = in.weight_tensor, .rows = in.rows_tensor, .y = y,
                             .inv_rms = inv_rms, .eps = epsilon});
    test::run(RmsNormBackward{.dy = in.dy_tensor, .x = in.x_tensor, .weight = in.weight_tensor,
                                     .inv_rms = inv_rms, .rows = in.rows_tensor, .dx = dx.tensor()});
    const auto result = test::download(dx.tensor());
    dx.expect_guards_intact();

    const auto loss = [&](const std::vector<double>& x) {
      const auto values = reference(x, in.weight, c);
      double sum = 0;
      for (std::size_t i = 0; i < values.size(); ++i) sum += values[i] * double{in.dy[i]};
      return sum;
    };
    std::vector<std::size_t> indices;
    for (std::size_t i = 0; i < in.x.size(); i += std::max<std::size_t>(in.x.size() / 40, 1)) indices.push_back(i);
    const auto slopes = test::finite_differences(loss, {in.x.begin(), in.x.end()}, indices, 1e-4);
    for (std::size_t k = 0; k < indices.size(); ++k) {
      // f32 sums of values up to 4; differences of step 1e-4 err by 1e-8 relative to the third derivative.
      EXPECT_NEAR(result[indices[k]], slopes[k] + double{start[indices[k]]}, 2e-5) << indices[k];
    }
  }
}

// The same dx, what PackRows makes of it, and y as the forward pass left it, for rows that lanes keep and longer ones.
TEST(RmsNorm, BackwardStoresItsSumAndTheForwardResultInF16) {
  if (test::must_skip(test::device().info().f16)) GTEST_SKIP() << "The adapter has no f16.";
  for (const std::uint32_t columns : {5u, 64u, 96u, 4096u, 20480u}) {
    const Inputs in = make_inputs({.x_rows = 7, .columns = columns, .rows = {}});
    const auto start = test::random_values(in.x.size(), 4);
    const Tensor alone = test::upload(start, {7, columns});
    const auto expected = make_operand(test::device(), ProductPath::f16, 7, columns, "packed");
    const auto forward = make_operand(test::device(), ProductPath::f16, 7, columns, "y");
    const Tensor inv_rms = test::device().tensor(DType::f32, {7}, "inv_rms");
    test::run(RmsNorm{.x = in.x_tensor, .weight = in.weight_tensor, .rows = {}, .y = forward, .inv_rms = inv_rms});
    const RmsNormBackward plain{.dy = in.dy_tensor, .x = in.x_tensor, .weight = in.weight_tensor, .inv_rms = inv_rms, .rows = {}, .dx = alone};
    test::run(plain);
    test::run(PackRows{.x = alone, .y = expected});
    for (const auto& [packs, stores_y] : {std::pair{true, false}, {false, true}, {true, true}}) {
      const test::GuardedTensor dx(DType::f32, {7, columns});
      const test::GuardedOperand packed(ProductPath::f16, 7, columns), y(ProductPath::f16, 7, columns);
      test::device().write(dx.tensor(), std::as_bytes(std::span(start)));
      RmsNormBackward op = plain;
      op.dx = dx.tensor();
      if (packs) op.packed = packed.operand();
      if (stores_y) op.y = y.operand();
      test::run(op);
      EXPECT_EQ(test::download(dx.tensor()), test::download(alone));
      const auto expect_same = [](const Operand& got, const Operand& wanted) {
        EXPECT_EQ(test::download(got.data), test::download(wanted.data));
        EXPECT_EQ(test::download(got.scale), test::download(wanted.scale));
      };
      if (packs) expect_same(packed.operand(), expected);
      if (stores_y) expect_same(y.operand(), forward);
      dx.expect_guards_intact();
      packed.expect_guards_intact();
      y.expect_guards_intact();
    }
  }
}

// The same bits as of a dy that is whole, in each kernel: of products all of whose blocks are split, or those beyond some, or none, for
// rows that lanes keep and longer ones. Of two bands of block rows the second has one.
TEST(RmsNorm, BackwardAddsUpWhatAProductLeft) {
  auto& device = test::device();
  if (test::must_skip(supports(device.info(), ProductPath::matrix))) GTEST_SKIP() << "The adapter has no matrices.";
  const std::uint32_t rows = 2 * default_matrix_tile(device.info())->block_m + 7, outputs = 96;
  for (const std::uint32_t columns : {128u, 328u}) {
    ASSERT_TRUE(takes_split_sums(device, rows, columns));
    const Inputs in = make_inputs({.x_rows = rows, .columns = columns, .rows = {}});
    MatrixProduct product{.x = test::upload_operand(test::random_values(std::size_t{rows} * outputs, 5), rows, outputs, ProductPath::f16),
                          .w = {.data = test::upload(test::random_values(std::size_t{outputs} * columns, 6), {outputs, columns}, DType::f16), .scale = 0.5f},
                          .y = {}};
    product.scratch = device.tensor(DType::f32, {1u << 20}, "scratch");
    product.tile = default_matrix_tile(device.info());
    product.tile->band = 2;
    const Tensor inv_rms = test::upload(std::vector<float>(rows, 0.75f), {rows});
    const auto start = test::random_values(in.x.size(), 4);
    for (const auto& [splits, wave] : {std::pair{3u, 0u}, {2u, 5u}, {3u, 1u}}) {
      for (const auto& [packs, stores_y] : {std::pair{false, false}, {true, false}, {false, true}, {true, true}}) {
        SCOPED_TRACE(fmt::format("{} columns, {} splits, wave of {}, packs {}, y {}", columns, splits, wave, packs, stores_y));
        std::array<std::vector<std::vector<float>>, 2> results;
        for (const bool left : {false, true}) {
          const Tensor dx = test::upload(start, {rows, columns});
          const auto packed = make_operand(device, ProductPath::f16, rows, columns, "packed"), y = make_operand(device, ProductPath::f16, rows, columns, "y");
          SplitSums sums;
          product.y = test::upload(std::vector<float>(in.x.size(), 1e30f), {rows, columns});  // where blocks were split this stays
          product.splits = splits;
          product.wave = wave;
          product.sums = left ? &sums : nullptr;
          gpu::Recorder recorder(device);
          record_matrix_nn(recorder, product);
          ASSERT_EQ(static_cast<bool>(sums), left);
          record(recorder, RmsNormBackward{.dy = product.y, .x = in.x_tensor, .weight = in.weight_tensor, .inv_rms = inv_rms, .rows = {}, .dx = dx,
                                           .packed = packs ? packed : Operand{}, .y = stores_y ? y : Operand{}, .sums = sums});
          recorder.submit();
          results[left] = {test::download(dx)};
          for (const Operand* stored : {packs ? &packed : nullptr, stores_y ? &y : nullptr}) {
            if (stored) results[left].insert(results[left].end(), {test::download(stored->data), test::download(stored->scale)});
          }
        }
        EXPECT_EQ(results[1], results[0]);
        EXPECT_LT(*std::max_element(results[1][0].begin(), results[1][0].end()), 1e20f);
      }
    }
  }
}

TEST(RmsNorm, MoreThanOneBinding) {
  const std::uint32_t rows = 33000, columns = 1024;  // 129 MiB
  const auto x = test::device().tensor(DType::f32, {rows, columns}, "x");
  std::vector<float> last(columns, 2.0f);
  test::device().write(x.rows(rows - 1, rows), std::as_bytes(std::span(last)));
  test::device().write(x.rows(5, 6), std::as_bytes(std::span(last)));
  const auto weight = test::upload(std::vector<float>(columns, 3.0f), {columns});
  const auto inv_rms = test::device().tensor(DType::f32, {rows}, "inv_rms");
  const auto y = make_operand(test::device(), ProductPath::f32, rows, columns, "y");
  const auto picked = make_operand(test::device(), ProductPath::f32, 3, columns, "picked");
  test::run(RmsNorm{.x = x, .weight = weight, .y = y, .inv_rms = inv_rms});
  test::run(RmsNorm{.x = x, .weight = weight, .rows = test::upload_u32(std::vector<std::uint32_t>{rows - 1, 4, 5}),
                           .y = picked, .inv_rms = test::device().tensor(DType::f32, {3}, "inv_rms")});
  EXPECT_NEAR(test::download(y.data.rows(rows - 1, rows))[columns - 1], 3.0f, 1e-5f);
  EXPECT_EQ(test::download(y.data.rows(rows - 2, rows - 1))[0], 0.0f);
  const auto values = test::download(picked);
  EXPECT_NEAR(values[0], 3.0f, 1e-5f);
  EXPECT_EQ(values[columns], 0.0f);
  EXPECT_NEAR(values[2 * columns], 3.0f, 1e-5f);
}

TEST(RmsNorm, WrongShapesAreNamed) {
  gpu::Recorder recorder(test::device());
  const auto matrix = test::upload(std::vector<float>(6), {2, 3}), weight = test::upload(std::vector<float>(2), {2});
  try {
    record(recorder, RmsNorm{.x = matrix, .weight = weight, .y = {matrix, {}}, .inv_rms = weight});
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "[rms_norm] The tensor weight has shape (2) instead of (3).");
  }
}

}  // namespace
}  // namespace nibble::rms_norm_test
