#include "nibble/kernels/token_rows.h"
#include "nibble/kernels/embedding.h"

#include "tests/support/gpu_test.h"

#include <cmath>

namespace nibble::token_rows_test {
namespace {

constexpr std::uint32_t vocabulary = 38;
const std::vector<std::uint32_t> ids{36, 0, 17};

std::vector<ProductPath> operand_paths() {
  std::vector<ProductPath> paths{ProductPath::f32};
  if (test::device().info().f16) paths.push_back(ProductPath::f16);
  return paths;
}

test::GuardedTensor filled(const std::vector<float>& values, std::uint32_t rows, std::uint32_t columns) {
  test::GuardedTensor tensor(DType::f32, {rows, columns});
  test::device().write(tensor.tensor(), std::as_bytes(std::span(values)));
  return tensor;
}

std::uint32_t count_of(const std::vector<std::uint32_t>& values) { return static_cast<std::uint32_t>(values.size()); }

TEST(TokenRows, TheNamedRowsOfATableAreWrittenAndNoOthers) {
  for (const ProductPath path : operand_paths()) {
    for (const std::uint32_t columns : {1u, 7u, 64u, 132u}) {
      const test::GuardedTensor table(operand_dtype(path), {vocabulary, columns});
      const auto before = test::upload(test::random_values(vocabulary * columns, 1), {vocabulary, columns}, operand_dtype(path));
      const auto old = test::download(before);
      const auto bytes = test::device().read<std::uint8_t>(before);
      test::device().write(table.tensor(), std::as_bytes(std::span(bytes)));
      const auto values = test::random_values(3 * columns, 2);
      test::run(WriteTokenRows{.rows = test::upload(values, {3, columns}), .ids = test::upload_u32(ids), .table = {table.tensor(), 0.25f}});
      const auto now = test::download(table.tensor());
      table.expect_guards_intact();
      const double rounding = path == ProductPath::f32 ? 0 : 0x1p-11;
      for (std::uint32_t row = 0; row < vocabulary; ++row) {
        const auto which = std::find(ids.begin(), ids.end(), row) - ids.begin();
        for (std::uint32_t c = 0; c < columns; ++c) {
          const float found = now[row * columns + c];
          if (which == 3) {
            EXPECT_EQ(found, old[row * columns + c]);
          } else {
            const float wanted = 4 * values[static_cast<std::size_t>(which) * columns + c];
            EXPECT_NEAR(found, wanted, rounding * std::fabs(wanted) + 0x1p-24) << row << " " << c;
          }
        }
      }
    }
  }
}

// What a table in f16 holds is read as f32 and written back without a change: so the base's own rows return bit for bit.
TEST(TokenRows, RowsReadFromATableComeBackBitForBit) {
  for (const ProductPath path : operand_paths()) {
    const std::uint32_t columns = 64;
    const auto table = test::upload(test::random_values(vocabulary * columns, 1), {vocabulary, columns}, operand_dtype(path));
    const auto before = test::device().read<std::uint8_t>(table);
    const Tensor kept = test::device().tensor(DType::f32, {3, columns}, "kept"), tokens = test::upload_u32(ids);
    test::run(Embedding{.tokens = tokens, .table = {table, 0x1p-9f}, .x = kept});
    test::run(WriteTokenRows{.rows = test::upload(test::random_values(3 * columns, 2), {3, columns}), .ids = tokens, .table = {table, 0x1p-9f}});
    EXPECT_NE(test::device().read<std::uint8_t>(table), before);
    test::run(WriteTokenRows{.rows = kept, .ids = tokens, .table = {table, 0x1p-9f}});
    EXPECT_EQ(test::device().read<std::uint8_t>(table), before);
  }
}

// 133 MiB of table: rows on both sides of where a binding ends.
TEST(TokenRows, TableLargerThanOneBinding) {
  const std::uint32_t rows = 34000, columns = 1024;
  const auto table = test::device().tensor(DType::f32, {rows, columns}, "table");
  const std::vector<std::uint32_t> ends{rows - 1, 0};
  test::run(WriteTokenRows{.rows = test::upload(test::random_values(2 * columns, 2), {2, columns}), .ids = test::upload_u32(ends), .table = {table}});
  const auto values = test::random_values(2 * columns, 2);
  const auto last = test::download(table.rows(rows - 1, rows)), first = test::download(table.rows(0, 1)), other = test::download(table.rows(1, 2));
  EXPECT_EQ(last.back(), values[columns - 1]);
  EXPECT_EQ(first.front(), values[columns]);
  EXPECT_EQ(other, std::vector<float>(columns));
}

// Against finite differences of sum over t of dy[t] . table[tokens[t]].
TEST(TokenRows, EmbeddingBackwardIsTheGradientOfTheGather) {
  const std::vector<std::uint32_t> tokens{17, 3, 36, 17, 36, 36, 5, 17};
  for (const std::uint32_t columns : {1u, 7u, 64u, 132u}) {
    const auto dy = test::random_values(tokens.size() * columns, 3), before = test::random_values(3 * columns, 4);
    const auto d_rows = filled(before, 3, columns);
    test::run(EmbeddingBackward{.tokens = test::upload_u32(tokens), .dx = test::upload(dy, {count_of(tokens), columns}),
                                .ids = test::upload_u32(ids), .d_rows = d_rows.tensor()});
    const auto found = test::download(d_rows.tensor());
    d_rows.expect_guards_intact();
    const auto loss = [&](const std::vector<double>& rows) {
      double sum = 0;
      for (std::size_t t = 0; t < tokens.size(); ++t) {
        const auto which = static_cast<std::size_t>(std::find(ids.begin(), ids.end(), tokens[t]) - ids.begin());
        for (std::uint32_t c = 0; which < 3 && c < columns; ++c) sum += rows[which * columns + c] * dy[t * columns + c];
      }
      return sum;
    };
    const std::vector<std::size_t> all{0, columns - 1, columns, 3 * columns - 1};
    const auto gradient = test::finite_differences(loss, std::vector<double>(3 * columns), all);
    for (std::size_t i = 0; i < all.size(); ++i) EXPECT_NEAR(found[all[i]], before[all[i]] + gradient[i], 1e-5) << columns << " " << all[i];
  }
}

// Tokens beyond one binding of dx count too.
TEST(TokenRows, EmbeddingBackwardOfMoreTokensThanOneBindingHolds) {
  const std::uint32_t length = 34000, columns = 1024;
  std::vector<std::uint32_t> tokens(length, 1);
  tokens.front() = tokens.back() = 36;
  const Tensor dx = test::device().tensor(DType::f32, {length, columns}, "dx");
  const std::vector<float> ones(columns, 1.0f), twos(columns, 2.0f);
  test::device().write(dx.rows(0, 1), std::as_bytes(std::span(ones)));
  test::device().write(dx.rows(length - 1, length), std::as_bytes(std::span(twos)));
  const auto d_rows = filled(std::vector<float>(3 * columns), 3, columns);
  test::run(EmbeddingBackward{.tokens = test::upload_u32(tokens), .dx = dx, .ids = test::upload_u32(ids), .d_rows = d_rows.tensor()});
  const auto found = test::download(d_rows.tensor());
  d_rows.expect_guards_intact();
  EXPECT_EQ(found[5], 3.0f);
  EXPECT_EQ(found[columns + 5], 0.0f);
}

// Against finite differences of sum over r of d_logits[r] . (normed[r] head^T), with operands as products have them.
TEST(TokenRows, HeadRowsBackwardIsTheGradientOfTheProduct) {
  const std::uint32_t labels = 5;
  for (const ProductPath path : operand_paths()) {
    for (const std::uint32_t columns : {1u, 7u, 64u, 132u}) {
      const Operand d_logits = test::upload_operand(test::random_values(labels * vocabulary, 5), labels, vocabulary, path);
      const Operand normed = test::upload_operand(test::random_values(labels * columns, 6, 30.0f), labels, columns, path);
      const auto before = test::random_values(3 * columns, 7);
      const auto d_rows = filled(before, 3, columns);
      test::run(HeadRowsBackward{.d_logits = d_logits, .normed = normed, .ids = test::upload_u32(ids), .d_rows = d_rows.tensor()});
      const auto found = test::download(d_rows.tensor());
      d_rows.expect_guards_intact();
      const auto d = test::download(d_logits), x = test::download(normed);
      const auto loss = [&](const std::vector<double>& rows) {
        double sum = 0;
        for (std::uint32_t r = 0; r < labels; ++r) {
          for (std::size_t i = 0; i < 3; ++i) {
            for (std::uint32_t c = 0; c < columns; ++c) sum += double{d[r * vocabulary + ids[i]]} * x[r * columns + c] * rows[i * columns + c];
          }
        }
        return sum;
      };
      const std::vector<std::size_t> all{0, columns - 1, columns, 3 * columns - 1};
      const auto gradient = test::finite_differences(loss, std::vector<double>(3 * columns), all);
      for (std::size_t i = 0; i < all.size(); ++i) {
        EXPECT_NEAR(found[all[i]], before[all[i]] + gradient[i], 1e-4) << test::name_of(path) << " " << columns << " " << all[i];
      }
    }
  }
}

}  // namespace
}  // namespace nibble::token_rows_test
