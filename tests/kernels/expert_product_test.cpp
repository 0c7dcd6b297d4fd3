#include "nibble/kernels/expert_product.h"

#include "nibble/base/error.h"
#include "nibble/base/nf4_table.h"
#include "nibble/kernels/expert_matrix.h"
#include "nibble/kernels/product.h"
#include "tests/kernels/expert_reference.h"
#include "tests/support/files.h"

#include <cmath>

namespace nibble::expert_product_test {
namespace {

using test::GuardedTensor;
using test::SortedRows;

struct Case {
  std::uint32_t tokens, experts, per_token, outputs, inputs;
  bool nf4;
};

// Few rows, tiles of 16 rows and of 64, begun and whole; columns within a block of 64 and beyond; sums that end within a step.
const Case cases[] = {{1, 3, 2, 8, 8, true},      {5, 4, 2, 24, 40, true},   {90, 3, 2, 72, 128, true}, {300, 2, 1, 64, 64, true},
                      {5, 4, 2, 3, 17, false},    {90, 3, 2, 5, 70, false},  {40, 6, 3, 130, 6, false}, {1, 128, 8, 16, 64, true}, {90, 30, 2, 24, 40, true}};

// Weights of all experts, and the values that they have.
struct TestWeights {
  ExpertWeights weights;
  std::vector<float> values;

  explicit TestWeights(const Case& c) {
    const std::size_t count = std::size_t{c.experts} * c.outputs * c.inputs;
    if (!c.nf4) {
      values = test::random_values(count, count);
      weights.values = test::upload(values, {c.experts * c.outputs, c.inputs});
      return;
    }
    Rng rng(count);
    std::vector<std::uint32_t> words(count / 8);
    const auto absmax = test::random_values(count / nf4_block, count + 1);
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t code = rng.below(16), byte = static_cast<std::uint32_t>(i % 8 / 2);
      words[i / 8] |= code << (8 * byte + (i % 2 == 0 ? 4 : 0));
      values.push_back(nf4_codes[code] * absmax[i / nf4_block]);
    }
    weights.nf4 = {test::upload_u32(words), test::upload(absmax, {static_cast<std::uint32_t>(absmax.size())})};
  }
};

void fill(const Tensor& tensor, float value) {
  const std::vector<float> values(tensor.size(), value);
  test::device().write(tensor, std::as_bytes(std::span(values)));
}

void check_product(const Case& c, bool turned, bool by_token, bool accumulate) {
  const SortedRows sorted(c.tokens, c.experts, c.per_token, c.tokens);
  const TestWeights w(c);
  const std::uint32_t inner = turned ? c.outputs : c.inputs, columns = turned ? c.inputs : c.outputs;
  const std::uint32_t x_rows = by_token ? c.tokens : sorted.rows.slots;
  const auto x = test::random_values(std::size_t{x_rows} * inner, 3);
  const GuardedTensor y(DType::f32, {sorted.rows.slots, columns});
  if (accumulate) fill(y.tensor(), 0.5f);
  const ExpertProduct op{.x = test::upload(x, {x_rows, inner}), .w = w.weights, .rows = sorted.rows, .y = y.tensor(), .by_token = by_token,
                         .accumulate = accumulate, .scaling = 0.75f};
  gpu::Recorder recorder(test::device());
  turned ? record_nn(recorder, op) : record_nt(recorder, op);
  recorder.submit();
  y.expect_guards_intact();
  const auto got = test::download(y.tensor());
  for (std::size_t row = 0; row < sorted.rows.slots; ++row) {
    const std::size_t source = by_token ? sorted.token_of_row(row) : row, expert = sorted.expert_of_row[row];
    for (std::size_t column = 0; column < columns; ++column) {
      double sum = 0, magnitude = 1;
      for (std::size_t l = 0; l < inner; ++l) {
        const std::size_t n = turned ? l : column, k = turned ? column : l;
        const double term = double{x[source * inner + l]} * w.values[(expert * c.outputs + n) * c.inputs + k];
        sum += term;
        magnitude += std::abs(term);
      }
      const double expected = (accumulate ? 0.5 : 0.0) + 0.75 * sum;
      ASSERT_NEAR(got[row * columns + column], expected, (inner + 3) * 0x1p-24 * magnitude) << row << " " << column;
    }
  }
}

TEST(ExpertProduct, OddSizesEqualTheReference) {
  for (const Case& c : cases) {
    for (const bool turned : {false, true}) {
      for (const bool by_token : {false, true}) {
        for (const bool accumulate : {false, true}) {
          SCOPED_TRACE(fmt::format("{} tokens, {} experts ({}, {}), turned {}, by token {}", c.tokens, c.experts, c.outputs, c.inputs, turned, by_token));
          check_product(c, turned, by_token, accumulate);
        }
      }
    }
  }
}

// Experts that one binding has no room for are taken in several.
TEST(ExpertProduct, MoreThanOneBinding) {
  const std::uint32_t experts = 5, outputs = 2048, inputs = 4096;  // 160 MiB
  const SortedRows sorted(6, experts, 4);
  const auto weights = test::device().tensor(DType::f32, {experts * outputs, inputs}, "weights");
  const auto w = test::random_values(inputs, 1), x = test::random_values(6 * inputs, 2);
  for (std::uint32_t e = 0; e < experts; ++e) {
    std::vector<float> row = w;
    for (float& value : row) value *= static_cast<float>(e);
    test::device().write(weights.rows(e * outputs + 2000, e * outputs + 2001), std::as_bytes(std::span(row)));
  }
  const GuardedTensor y(DType::f32, {sorted.rows.slots, outputs});
  gpu::Recorder recorder(test::device());
  record_nt(recorder, {.x = test::upload(x, {6, inputs}), .w = {.values = weights}, .rows = sorted.rows, .y = y.tensor(), .by_token = true});
  recorder.submit();
  y.expect_guards_intact();
  const auto got = test::download(y.tensor());
  for (std::size_t row = 0; row < sorted.rows.slots; ++row) {
    double sum = 0;
    for (std::size_t i = 0; i < inputs; ++i) sum += double{x[sorted.token_of_row(row) * inputs + i]} * w[i];
    EXPECT_NEAR(got[row * outputs + 2000], sum * sorted.expert_of_row[row], 1e-3);
    EXPECT_EQ(got[row * outputs + 1999], 0.0f);
  }
}

TEST(ExpertProduct, RefusesWeightsThatDoNotFit) {
  const SortedRows sorted(4, 3, 2);
  const auto x = test::upload(test::random_values(8 * 12, 1), {8, 12}), y = test::upload(test::random_values(8 * 16, 1), {8, 16});
  const auto run = [&](const ExpertWeights& w) {
    gpu::Recorder recorder(test::device());
    record_nt(recorder, {.x = x, .w = w, .rows = sorted.rows, .y = y});
  };
  test::expect_error<Error>([&] { run({.values = test::upload(test::random_values(32 * 12, 1), {32, 12})}); }, "3 experts (16, 12)");
  const TestWeights nf4({.tokens = 4, .experts = 3, .per_token = 2, .outputs = 16, .inputs = 12, .nf4 = true});
  test::expect_error<Error>([&] { run(nf4.weights); }, "rows of eight");
}

// On matrix units: f16 operands round by 2^-11 each, the weight's scale is a power of two.
TEST(ExpertMatrix, OddSizesEqualTheReference) {
  if (test::must_skip(supports(test::device().info(), ProductPath::matrix))) GTEST_SKIP() << "The adapter has no matrices.";
  const Case matrix_cases[] = {{90, 3, 2, 72, 128, true}, {65, 2, 2, 24, 40, true}, {300, 5, 1, 64, 64, true}, {64, 4, 3, 16, 200, true}, {40, 1, 1, 8, 8, true}};
  for (const Case& c : matrix_cases) {
    const auto tile = expert_matrix_tile(test::device().info(), c.experts, c.tokens * c.per_token);
    ASSERT_TRUE(tile);
    const SortedRows sorted(c.tokens, c.experts, c.per_token, c.tokens, tile->block_m);
    const TestWeights w(c);
    const auto absmax = test::download(w.weights.nf4.absmax);
    for (const bool turned : {false, true}) {
      for (const bool by_token : {false, true}) {
        for (const bool accumulate : {false, true}) {
          const std::uint32_t inner = turned ? c.outputs : c.inputs, columns = turned ? c.inputs : c.outputs;
          const std::uint32_t x_rows = by_token ? c.tokens : sorted.rows.slots;
          const Operand x = test::upload_operand(test::random_values(std::size_t{x_rows} * inner, 3), x_rows, inner, ProductPath::matrix);
          const auto values = test::download(x);
          const GuardedTensor y(DType::f32, {sorted.rows.slots, columns});
          if (accumulate) fill(y.tensor(), 0.5f);
          const ExpertMatrixProduct op{.x = x, .w = w.weights.nf4, .largest = *std::max_element(absmax.begin(), absmax.end()), .rows = sorted.rows,
                                       .y = y.tensor(), .by_token = by_token, .accumulate = accumulate};
          gpu::Recorder recorder(test::device());
          turned ? record_matrix_nn(recorder, op) : record_matrix_nt(recorder, op);
          recorder.submit();
          y.expect_guards_intact();
          const auto got = test::download(y.tensor());
          for (std::size_t row = 0; row < sorted.rows.slots; ++row) {
            const std::size_t source = by_token ? sorted.token_of_row(row) : row, expert = sorted.expert_of_row[row];
            for (std::size_t column = 0; column < columns; ++column) {
              double sum = accumulate ? 0.5 : 0.0, magnitude = std::abs(sum);
              for (std::size_t l = 0; l < inner; ++l) {
                const std::size_t n = turned ? l : column, k = turned ? column : l;
                const double term = double{values[source * inner + l]} * w.values[(expert * c.outputs + n) * c.inputs + k];
                sum += term;
                magnitude += std::abs(term);
              }
              ASSERT_NEAR(got[row * columns + column], sum, (0x1p-11 + (inner + 3) * 0x1p-24) * magnitude)
                  << c.tokens << " tokens, turned " << turned << ", by token " << by_token << ": " << row << " " << column;
            }
          }
        }
      }
    }
  }
}

// Few rows an expert are not for matrix units.
TEST(ExpertMatrix, LeavesFewRowsToOthers) {
  if (test::must_skip(supports(test::device().info(), ProductPath::matrix))) GTEST_SKIP() << "The adapter has no matrices.";
  EXPECT_FALSE(expert_matrix_tile(test::device().info(), 128, 8));
  EXPECT_FALSE(expert_matrix_tile(test::device().info(), 128, 128 * 8));
  EXPECT_TRUE(expert_matrix_tile(test::device().info(), 128, 128 * 64));
  const SortedRows sorted(90, 3, 2);
  const TestWeights w({90, 3, 2, 72, 128, true});
  const Operand x = test::upload_operand(test::random_values(90 * 128, 3), 90, 128, ProductPath::matrix);
  ExpertRows rows = sorted.rows;
  rows.tile_rows = most_tile_rows + least_tile_rows;  // as no adapter's matrix units have them
  gpu::Recorder recorder(test::device());
  test::expect_error<Error>([&] { record_matrix_nt(recorder, {.x = x, .w = w.weights.nf4, .rows = rows, .y = test::upload(test::random_values(180 * 72, 1), {180, 72}), .by_token = true}); },
                            "not sorted in tiles for matrix units but of 144");
}

TEST(ExpertGradient, SumsOverAnExpertsRows) {
  struct Sizes {
    std::uint32_t tokens, experts, per_token, rank, columns;
  };
  for (const Sizes& s : {Sizes{1, 2, 1, 1, 3}, {50, 3, 2, 4, 70}, {33, 4, 3, 17, 64}, {100, 2, 1, 16, 130}}) {
    const SortedRows sorted(s.tokens, s.experts, s.per_token, s.tokens);
    for (const bool by_token : {false, true}) {
      for (const bool turned : {false, true}) {
        const std::uint32_t wide_rows = by_token ? s.tokens : sorted.rows.slots;
        const auto narrow = test::random_values(std::size_t{sorted.rows.slots} * s.rank, 1), wide = test::random_values(std::size_t{wide_rows} * s.columns, 2);
        const GuardedTensor gradient(DType::f32, {s.experts * (turned ? s.columns : s.rank), turned ? s.rank : s.columns});
        fill(gradient.tensor(), 0.25f);
        test::run(ExpertGradient{.narrow = test::upload(narrow, {sorted.rows.slots, s.rank}), .wide = test::upload(wide, {wide_rows, s.columns}),
                                 .rows = sorted.rows, .gradient = gradient.tensor(), .by_token = by_token, .turned = turned, .scaling = 2.0f});
        gradient.expect_guards_intact();
        std::vector<double> expected(std::size_t{s.experts} * s.rank * s.columns, 0.25);
        for (std::size_t row = 0; row < sorted.rows.slots; ++row) {
          const std::size_t source = by_token ? sorted.token_of_row(row) : row, expert = sorted.expert_of_row[row];
          for (std::size_t j = 0; j < s.rank; ++j) {
            for (std::size_t i = 0; i < s.columns; ++i) {
              const std::size_t at = turned ? (expert * s.columns + i) * s.rank + j : (expert * s.rank + j) * s.columns + i;
              expected[at] += 2.0 * narrow[row * s.rank + j] * wide[source * s.columns + i];
            }
          }
        }
        const auto got = test::download(gradient.tensor());
        // Sums of at most 100 terms below 2.
        for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], 200 * 103 * 0x1p-24) << i << " " << turned;
      }
    }
  }
}

double sigmoid(double g) { return 1 / (1 + std::exp(-g)); }

struct SwiGluReference {
  std::vector<double> z, d_gate, d_up, d_weight;
};

// x: gate, up and then weights by slot.
SwiGluReference swiglu(const std::vector<double>& x, std::span<const float> dz, const SortedRows& sorted, std::uint32_t columns) {
  const std::size_t size = std::size_t{sorted.rows.slots} * columns;
  SwiGluReference r{.z = {}, .d_gate = {}, .d_up = {}, .d_weight = std::vector<double>(sorted.rows.slots)};
  for (std::size_t i = 0; i < size; ++i) {
    const std::size_t slot = sorted.slot_of_row[i / columns];
    const double g = x[i], u = x[size + i], w = x[2 * size + slot], s = sigmoid(g);
    r.z.push_back(w * g * s * u);
    r.d_weight[slot] += dz[i] * g * s * u;
    r.d_gate.push_back(w * dz[i] * u * s * (1 + g * (1 - s)));
    r.d_up.push_back(w * dz[i] * g * s);
  }
  return r;
}

void expect_near(const Tensor& tensor, const std::vector<double>& expected, double allowed) {
  const auto got = test::download(tensor);
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], allowed) << i;
}

TEST(ExpertSwiGlu, EqualsTheReferenceAndItsDifferences) {
  for (const auto& [tokens, columns] : {std::pair{1u, 1u}, {5u, 7u}, {20u, 68u}}) {
    const SortedRows sorted(tokens, 5, 2, tokens);
    const std::uint32_t rows = sorted.rows.slots;
    const std::size_t size = std::size_t{rows} * columns;
    const auto gate = test::random_values(size, 1, 6.0f), up = test::random_values(size, 2), dz = test::random_values(size, 3);
    const auto weight = test::random_values(rows, 4);
    std::vector<double> x(gate.begin(), gate.end());
    x.insert(x.end(), up.begin(), up.end());
    x.insert(x.end(), weight.begin(), weight.end());
    const SwiGluReference expected = swiglu(x, dz, sorted, columns);

    const GuardedTensor z(DType::f32, {rows, columns}), d_gate(DType::f32, {rows, columns}), d_up(DType::f32, {rows, columns});
    const GuardedTensor d_weight(DType::f32, {tokens, 2});
    const Tensor g = test::upload(gate, {rows, columns}), u = test::upload(up, {rows, columns}), w = test::upload(weight, {tokens, 2});
    test::run(ExpertSwiGlu{.gate = g, .up = u, .weight = w, .rows = sorted.rows, .z = z.tensor()});
    test::run(ExpertSwiGluBackward{.dz = test::upload(dz, {rows, columns}), .gate = g, .up = u, .weight = w, .rows = sorted.rows,
                                   .d_gate = d_gate.tensor(), .d_up = d_up.tensor(), .d_weight = d_weight.tensor()});
    // Values below 6, exponentials of some units in the last place; d_weight is a sum over a row.
    expect_near(z.tensor(), expected.z, 1e-5);
    expect_near(d_gate.tensor(), expected.d_gate, 1e-5);
    expect_near(d_up.tensor(), expected.d_up, 1e-5);
    expect_near(d_weight.tensor(), expected.d_weight, 1e-5 * columns);
    for (const auto* tensor : {&z, &d_gate, &d_up, &d_weight}) tensor->expect_guards_intact();

    const auto loss = [&](const std::vector<double>& v) {
      const auto at = swiglu(v, dz, sorted, columns).z;
      double sum = 0;
      for (std::size_t i = 0; i < size; ++i) sum += at[i] * dz[i];
      return sum;
    };
    const std::size_t last = size - 1;
    const std::vector<std::size_t> indices = {0, last, size, size + last, 2 * size, 2 * size + rows - 1};
    const auto slopes = test::finite_differences(loss, x, indices);
    EXPECT_NEAR(expected.d_gate[0], slopes[0], 1e-7);
    EXPECT_NEAR(expected.d_gate[last], slopes[1], 1e-7);
    EXPECT_NEAR(expected.d_up[0], slopes[2], 1e-7);
    EXPECT_NEAR(expected.d_up[last], slopes[3], 1e-7);
    EXPECT_NEAR(expected.d_weight[0], slopes[4], 1e-7);
    EXPECT_NEAR(expected.d_weight[rows - 1], slopes[5], 1e-7);
  }
}

}  // namespace
}  // namespace nibble::expert_product_test
