#include "nibble/kernels/swiglu.h"

#include "tests/support/guarded_operand.h"

#include <cmath>

namespace nibble::swiglu_test {
namespace {

double sigmoid(double g) { return 1.0 / (1.0 + std::exp(-g)); }

struct Reference {
  std::vector<double> h, d_gate, d_up;
};

Reference reference(std::span<const float> gate, std::span<const float> up, std::span<const float> dh) {
  Reference result;
  for (std::size_t i = 0; i < gate.size(); ++i) {
    const double g = gate[i], u = up[i], s = sigmoid(g);
    result.h.push_back(g * s * u);
    result.d_gate.push_back(dh[i] * u * (s + g * s * (1 - s)));
    result.d_up.push_back(dh[i] * g * s);
  }
  return result;
}

void check_case(ProductPath path, std::span<const float> gate, std::span<const float> up, std::span<const float> dh,
                std::uint32_t rows, std::uint32_t columns) {
  const auto gate_tensor = test::upload(gate, {rows, columns}), up_tensor = test::upload(up, {rows, columns});
  const test::GuardedOperand h(path, rows, columns), d_gate(path, rows, columns), d_up(path, rows, columns);
  test::run(SwiGlu{.gate = gate_tensor, .up = up_tensor, .h = h.operand()});
  test::run(SwiGluBackward{.dh = test::upload(dh, {rows, columns}), .gate = gate_tensor, .up = up_tensor,
                                  .d_gate = d_gate.operand(), .d_up = d_up.operand()});
  const auto expected = reference(gate, up, dh);
  // WGSL allows exp(x) an error of 3 + 2|x| units in the last place, which matters where s is small: |g| up to 90 here.
  h.expect_values(expected.h, 200 * 0x1p-23);
  d_up.expect_values(expected.d_up, 200 * 0x1p-23);
  // 1 + g (1 - s) cancels near g = -1.28.
  d_gate.expect_values(expected.d_gate, 2000 * 0x1p-23);
  h.expect_guards_intact();
  d_gate.expect_guards_intact();
  d_up.expect_guards_intact();
}

TEST(SwiGlu, OddSizesEqualTheReference) {
  for (const auto path : test::product_paths()) {
    for (const auto& [rows, columns] : {std::pair{1u, 1u}, {3u, 5u}, {70u, 129u}, {9u, 256u}, {2u, 3076u}}) {
      SCOPED_TRACE(test::name_of(path) + " " + std::to_string(rows) + "x" + std::to_string(columns));
      const std::size_t size = std::size_t{rows} * columns;
      check_case(path, test::random_values(size, 1, 8.0f), test::random_values(size, 2, 100.0f),
                 test::random_values(size, 3, 1e-3f), rows, columns);
    }
  }
}

TEST(SwiGlu, LargeArguments) {
  const std::vector<float> gate = {3e4f, -3e4f, 88.0f, -86.0f, 1e30f, -1e30f, 0.0f, -0.0f};
  const std::vector<float> up = {3e4f, 3e4f, 1.0f, 1.0f, 1.0f, 1.0f, 5.0f, 5.0f};
  const std::vector<float> dh(8, 1.0f);
  for (const auto path : test::product_paths()) {
    const auto h = make_operand(test::device(), path, 8, 1, "h"), d_gate = make_operand(test::device(), path, 8, 1, "d"),
               d_up = make_operand(test::device(), path, 8, 1, "d");
    const auto gate_tensor = test::upload(gate, {8, 1}), up_tensor = test::upload(up, {8, 1});
    test::run(SwiGlu{.gate = gate_tensor, .up = up_tensor, .h = h});
    test::run(SwiGluBackward{.dh = test::upload(dh, {8, 1}), .gate = gate_tensor, .up = up_tensor, .d_gate = d_gate,
                                    .d_up = d_up});
    const auto values = test::download(h), slope = test::download(d_gate), slope_up = test::download(d_up);
    EXPECT_NEAR(values[0] / 9e8f, 1.0f, 1e-3f);
    EXPECT_NEAR(values[1], 0.0f, 1e-25f);
    EXPECT_NEAR(values[4] / 1e30f, 1.0f, 1e-3f);
    EXPECT_NEAR(values[6], 0.0f, 0.0f);
    EXPECT_NEAR(slope[0] / 3e4f, 1.0f, 1e-3f);
    EXPECT_NEAR(slope[6], 2.5f, 1e-3f);
    for (int i = 0; i < 8; ++i) {
      EXPECT_TRUE(std::isfinite(values[i])) << i;
      EXPECT_TRUE(std::isfinite(slope[i])) << i;
      EXPECT_TRUE(std::isfinite(slope_up[i])) << i;
    }
  }
}

TEST(SwiGlu, BackwardFormulaEqualsFiniteDifferences) {
  const auto gate = test::random_values(50, 1, 6.0f), up = test::random_values(50, 2), dh = test::random_values(50, 3);
  const auto expected = reference(gate, up, dh);
  std::vector<double> x(gate.begin(), gate.end());
  x.insert(x.end(), up.begin(), up.end());
  const auto loss = [&](const std::vector<double>& v) {
    double sum = 0;
    for (std::size_t i = 0; i < 50; ++i) sum += v[i] * sigmoid(v[i]) * v[50 + i] * double{dh[i]};
    return sum;
  };
  std::vector<std::size_t> indices(100);
  for (std::size_t i = 0; i < 100; ++i) indices[i] = i;
  const auto slopes = test::finite_differences(loss, x, indices);
  for (std::size_t i = 0; i < 50; ++i) {
    EXPECT_NEAR(expected.d_gate[i], slopes[i], 1e-8);
    EXPECT_NEAR(expected.d_up[i], slopes[50 + i], 1e-8);
  }
}

TEST(SwiGlu, MoreThanOneBinding) {
  const std::uint32_t rows = 34000, columns = 1024;  // 133 MiB
  const auto gate = test::device().tensor(DType::f32, {rows, columns}, "gate");
  const std::vector<float> row(columns, 2.0f);
  test::device().write(gate.rows(rows - 1, rows), std::as_bytes(std::span(row)));
  for (const auto path : {ProductPath::f32, test::product_paths().back()}) {
    const auto h = make_operand(test::device(), path, rows, columns, "h");
    test::run(SwiGlu{.gate = gate, .up = gate, .h = h});
    const auto last = Operand{h.data.rows(rows - 1, rows), h.scale ? h.scale.view({rows}) : Tensor{}};
    const float scale = h.scale ? test::download(last.scale)[rows - 1] : 1.0f;
    EXPECT_NEAR(test::download(last.data)[columns - 1] * scale, 4.0 * sigmoid(2.0), 2e-3);
  }
}

}  // namespace
}  // namespace nibble::swiglu_test
