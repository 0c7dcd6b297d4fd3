#include "nibble/kernels/embedding.h"

#include "tests/support/gpu_test.h"

#include <cmath>

namespace nibble::embedding_test {
namespace {

std::vector<DType> stored_types() {
  return test::device().info().f16 ? std::vector{DType::f32, DType::f16} : std::vector{DType::f32};
}

TEST(Embedding, RowsAreTheTables) {
  for (const DType dtype : stored_types()) {
    for (const std::uint32_t columns : {1u, 7u, 64u, 132u}) {
      const std::uint32_t vocabulary = 37;
      const auto table = test::upload(test::random_values(vocabulary * columns, 1), {vocabulary, columns}, dtype);
      const auto values = test::download(table);
      const std::vector<std::uint32_t> tokens = {0, 36, 5, 5, 37, 1, 0xffffffffu};
      const test::GuardedTensor x(DType::f32, {7, columns});
      // A token that is left out would show as zeros: the guards' own filling is NaN.
      const std::vector<float> zeros(7 * columns);
      test::device().write(x.tensor(), std::as_bytes(std::span(zeros)));
      test::run(Embedding{.tokens = test::upload_u32(tokens), .table = {table, 0.25f}, .x = x.tensor()});
      const auto result = test::download(x.tensor());
      x.expect_guards_intact();
      for (std::size_t t = 0; t < tokens.size(); ++t) {
        for (std::size_t c = 0; c < columns; ++c) {
          const float given = result[t * columns + c];
          if (tokens[t] >= vocabulary) {
            EXPECT_TRUE(std::isnan(given));
          } else {
            EXPECT_EQ(given, 0.25f * values[tokens[t] * columns + c]) << t << " " << c;
          }
        }
      }
    }
  }
}

TEST(Embedding, TableLargerThanOneBinding) {
  const std::uint32_t vocabulary = 34000, columns = 1024;  // 133 MiB
  const auto table = test::device().tensor(DType::f32, {vocabulary, columns}, "table");
  for (const std::uint32_t row : {0u, 1u, vocabulary - 1}) {
    const std::vector<float> values(columns, float(row + 1));
    test::device().write(table.rows(row, row + 1), std::as_bytes(std::span(values)));
  }
  const std::vector<std::uint32_t> tokens = {vocabulary - 1, 0, vocabulary, 1, 2};
  const test::GuardedTensor x(DType::f32, {5, columns});
  const std::vector<float> unwritten(5 * columns, -1.0f);
  test::device().write(x.tensor(), std::as_bytes(std::span(unwritten)));
  test::run(Embedding{.tokens = test::upload_u32(tokens), .table = {table}, .x = x.tensor()});
  const auto result = test::download(x.tensor());
  x.expect_guards_intact();
  EXPECT_EQ(result[columns - 1], float(vocabulary));
  EXPECT_EQ(result[columns], 1.0f);
  EXPECT_TRUE(std::isnan(result[2 * columns]));
  EXPECT_EQ(result[3 * columns], 2.0f);
  EXPECT_EQ(result[4 * columns], 0.0f);
}

}  // namespace
}  // namespace nibble::embedding_test
