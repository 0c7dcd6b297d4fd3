#include "nibble/kernels/transpose.h"

#include "nibble/base/error.h"
#include "tests/support/gpu_test.h"

namespace nibble::transpose_test {
namespace {

TEST(Transpose, OddSizes) {
  for (const auto& [rows, columns] : {std::pair{1u, 1u}, {1u, 40u}, {17u, 16u}, {33u, 50u}, {128u, 96u}}) {
    const auto x = test::random_values(std::size_t{rows} * columns, rows);
    const test::GuardedTensor y(DType::f32, {columns, rows});
    test::run(Transpose{.x = test::upload(x, {rows, columns}), .y = y.tensor()});
    y.expect_guards_intact();
    const auto result = test::download(y.tensor());
    for (std::uint32_t r = 0; r < rows; ++r) {
      for (std::uint32_t c = 0; c < columns; ++c) EXPECT_EQ(result[c * rows + r], x[r * columns + c]) << r << " " << c;
    }
  }
}

TEST(Transpose, MoreThanOneBinding) {
  const std::uint32_t rows = 8200, columns = 4224;  // 132 MiB
  const auto x = test::device().tensor(DType::f32, {rows, columns}, "x");
  for (const std::uint32_t row : {0u, rows - 1}) {
    std::vector<float> values(columns);
    for (std::uint32_t c = 0; c < columns; ++c) values[c] = float(row + c);
    test::device().write(x.rows(row, row + 1), std::as_bytes(std::span(values)));
  }
  const auto y = test::device().tensor(DType::f32, {columns, rows}, "y");
  test::run(Transpose{.x = x, .y = y});
  for (const std::uint32_t c : {0u, 1u, columns - 1}) {
    const auto line = test::download(y.rows(c, c + 1));
    EXPECT_EQ(line.front(), float(c));
    EXPECT_EQ(line[1], 0.0f);
    EXPECT_EQ(line.back(), float(rows - 1 + c));
  }
}

TEST(Transpose, WrongShapesAreNamed) {
  gpu::Recorder recorder(test::device());
  const Tensor x = test::upload(std::vector<float>(6), {2, 3});
  EXPECT_THROW(record(recorder, Transpose{.x = x, .y = x}), Error);
}

}  // namespace
}  // namespace nibble::transpose_test
