#include "nibble/kernels/pack_rows.h"

#include "tests/support/guarded_operand.h"

#include <cmath>

namespace nibble::pack_rows_test {
namespace {

std::vector<ProductPath> f16_paths() {
  return test::device().info().f16 ? std::vector{ProductPath::f16} : std::vector<ProductPath>{};
}

TEST(PackRows, OddSizesEqualTheReference) {
  for (const auto path : f16_paths()) {
    for (const auto& [rows, columns] : {std::pair{1u, 1u}, {5u, 3u}, {70u, 129u}, {9u, 256u}, {3u, 4100u}}) {
      SCOPED_TRACE(std::to_string(rows) + "x" + std::to_string(columns));
      auto x = test::random_values(std::size_t{rows} * columns, 1);
      // Rows of very different magnitude.
      for (std::size_t i = 0; i < x.size(); ++i) x[i] *= std::ldexp(1.0f, 20 * (static_cast<int>(i / columns) % 9 - 4));
      const test::GuardedOperand y(path, rows, columns);
      test::run(PackRows{.x = test::upload(x, {rows, columns}), .y = y.operand()});
      y.expect_values(std::vector<double>(x.begin(), x.end()), 0.0);
      y.expect_guards_intact();
      // The same bytes as the host's packing.
      const auto host = test::upload_operand(x, rows, columns, path);
      EXPECT_EQ(test::download(y.operand().data), test::download(host.data));
      EXPECT_EQ(test::download(y.operand().scale), test::download(host.scale));
    }
  }
}

TEST(PackRows, ExtremeRows) {
  for (const auto path : f16_paths()) {
    const std::vector<float> x = {0.0f,  -0.0f, 0.0f,      0.0f,      3.4e38f, -3.4e38f, 1.0f, 1e30f, 1e-37f, -2e-37f, 0.0f, 1e-38f,
                                  1e30f, 1.0f,  INFINITY,  -1.0f,     1.0f,    NAN,      2.0f, 3.0f};
    const auto y = make_operand(test::device(), path, 5, 4, "y");
    test::run(PackRows{.x = test::upload(x, {5, 4}), .y = y});
    const auto values = test::download(y), scales = test::download(y.scale);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(values[i], 0.0f);
    EXPECT_EQ(scales[0], 0.0f);
    EXPECT_NEAR(values[4] / 3.4e38f, 1.0f, 0x1p-11f);
    EXPECT_NEAR(values[9] / -2e-37f, 1.0f, 0x1p-11f);
    EXPECT_TRUE(std::isinf(values[14]));
    EXPECT_EQ(scales[3], 1.0f);
    EXPECT_TRUE(std::isnan(values[17]));
    EXPECT_EQ(values[18], 2.0f);
    EXPECT_EQ(scales[4], 1.0f);
  }
}

TEST(PackRows, AsOperandServesEachPath) {
  const auto x = test::random_values(30, 2);
  const auto tensor = test::upload(x, {6, 5});
  for (const auto path : test::product_paths()) {
    const Operand storage = path == ProductPath::f32 ? Operand{} : make_operand(test::device(), path, 8, 5, "storage");
    gpu::Recorder recorder(test::device());
    const Operand operand = as_operand(recorder, tensor, storage);
    recorder.submit();
    EXPECT_EQ(operand.data.shape_text().str(), "(6, 5)");
    EXPECT_LT(test::relative_error(test::download(operand), x), 0x1p-11);
  }
}

TEST(PackRows, MoreThanOneBinding) {
  for (const auto path : f16_paths()) {
    const std::uint32_t rows = 67000, columns = 512;  // 131 MiB, and more workgroups than one dimension has
    const auto x = test::device().tensor(DType::f32, {rows, columns}, "x");
    const std::vector<float> row(columns, 3.0f);
    test::device().write(x.rows(rows - 1, rows), std::as_bytes(std::span(row)));
    const auto y = make_operand(test::device(), path, rows, columns, "y");
    test::run(PackRows{.x = x, .y = y});
    EXPECT_EQ(test::download(y.data.rows(rows - 1, rows))[columns - 1], 12288.0f);
    EXPECT_EQ(test::download(y.scale)[rows - 1], 0x1p-12f);
    EXPECT_EQ(test::download(y.scale)[rows - 2], 0.0f);
  }
}

}  // namespace
}  // namespace nibble::pack_rows_test
