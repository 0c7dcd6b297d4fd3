#include "nibble/kernels/lora_matrix.h"

#include "nibble/base/error.h"
#include "nibble/kernels/lora.h"
#include "tests/support/gpu_test.h"

#include <algorithm>
#include <cmath>
#include <ostream>

namespace nibble::lora_matrix_test {
namespace {

using test::GuardedTensor;
using Matrix = std::vector<double>;

struct Case {
  std::uint32_t rows;
  LoraGroupShape shape;
  std::array<bool, 3> adapted{true, true, true};
  LoraGroupDropout dropout = {};
};

// Of a failing test's name.
void PrintTo(const Case& c, std::ostream* out) {
  *out << fmt::format("{} rows, rank {}, {} inputs, {} projections, dropout {}", c.rows, c.shape.rank, c.shape.inputs,
                      c.shape.outputs.size(), c.dropout.probability);
}

const LoraGroupDropout half{.probability = 0.5f, .seed = 3, .streams = {4, 9, 2}, .first_row = 7};

const std::vector<Case> cases = {
    {.rows = 1, .shape = {.rank = 1, .inputs = 8, .outputs = {8}}},
    {.rows = 5, .shape = {.rank = 4, .inputs = 24, .outputs = {40, 8, 16}}},
    {.rows = 5, .shape = {.rank = 4, .inputs = 24, .outputs = {40, 8, 16}}, .adapted = {true, false, true}},
    {.rows = 37, .shape = {.rank = 16, .inputs = 136, .outputs = {72, 200}}, .adapted = {false, true, true}},
    {.rows = 130, .shape = {.rank = 16, .inputs = 64, .outputs = {256, 64, 64}}},
    {.rows = 131, .shape = {.rank = 40, .inputs = 200, .outputs = {144, 40, 40}}},
    {.rows = 77, .shape = {.rank = 40, .inputs = 48, .outputs = {32, 8, 8}}, .adapted = {true, false, false}},
    {.rows = 300, .shape = {.rank = 8, .inputs = 520, .outputs = {264}}},
    {.rows = 8, .shape = {.rank = 16, .inputs = 1024, .outputs = {16}}},
    {.rows = 2000, .shape = {.rank = 16, .inputs = 16, .outputs = {24}}},
    {.rows = 9, .shape = {.rank = 256, .inputs = 40, .outputs = {16, 24, 8}}},
    {.rows = 33, .shape = {.rank = 4, .inputs = 24, .outputs = {40, 8, 16}}, .dropout = half},
    {.rows = 131, .shape = {.rank = 40, .inputs = 200, .outputs = {144, 40}}, .dropout = half},
};

Matrix doubles(const std::vector<float>& values) { return {values.begin(), values.end()}; }

void fill(const Tensor& tensor, const std::vector<float>& values) {
  test::device().write(tensor, std::as_bytes(std::span(values)));
}

// An operand whose rows have magnitudes from 2^-22 to 1 times `amplitude`, which the largest of every 128 rows differs by too;
// every seventh row from the third is zero.
Operand make_operand(std::uint32_t rows, std::uint32_t columns, float amplitude, std::uint64_t seed) {
  auto values = test::random_values(std::size_t{rows} * columns, seed, amplitude);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::size_t row = i / columns;
    values[i] = row % 7 == 3 ? 0.0f : std::ldexp(values[i], -static_cast<int>(row * 13 % 21 + row / 128 % 3));
  }
  return test::upload_operand(values, rows, columns, ProductPath::f16);
}

constexpr float weight_scale = 0.5f;
constexpr std::array<float, 3> scaling{0.75f, 1.5f, 0.25f};  // of the projections

// Adapters, what the kernels read, and the same values for a reference.
struct Group {
  explicit Group(const Case& c) {
    LoraGroupMasters masters{.shape = c.shape, .projections = {}, .weight_scale = weight_scale};
    for (std::size_t i = 0; i < c.shape.outputs.size(); ++i) {
      LoraMasters pair;
      if (c.adapted[i]) {
        const std::uint32_t rank = c.shape.rank, outputs = c.shape.outputs[i];
        pair.a =
            test::upload(test::random_values(std::size_t{rank} * c.shape.inputs, 10 + i, 0.3f), {rank, c.shape.inputs});
        pair.b = test::upload(test::random_values(std::size_t{rank} * outputs, 20 + i, 0.3f), {outputs, rank});
        pair.scaling = scaling[i];
      }
      masters.projections.push_back(pair);
    }
    pack = make_lora_pack(test::device(), std::span(&masters, 1));
    test::run(pack);
    a = doubles(test::download(group().a));
    b = doubles(test::download(group().b));
  }
  const LoraGroup& group() const { return pack.groups.front(); }

  LoraPack pack;
  Matrix a, b;
};

Tensor make_scratch(const Case& c) {
  const auto size = lora_matrix_scratch(test::device(), c.shape, c.rows);
  return test::device().tensor(DType::f32, {static_cast<std::uint32_t>(size)}, "scratch");
}

// What dropout makes of ones, by the kernels that work in f32.
Matrix mask_of(const Case& c, std::size_t projection) {
  const std::uint32_t columns = c.shape.inputs;
  const Tensor dh = test::upload(std::vector<float>(c.rows, 1.0f), {c.rows, 1});
  const Tensor a = test::upload(std::vector<float>(columns, 1.0f), {1, columns});
  const Tensor dx = test::upload(std::vector<float>(std::size_t{c.rows} * columns, 0.0f), {c.rows, columns});
  test::run(LoraDownBackwardInput{.dh = dh, .a = a, .dx = dx, .dropout = {.probability = c.dropout.probability,
                                  .seed = c.dropout.seed, .stream = c.dropout.streams[projection],
                                  .first_row = c.dropout.first_row}});
  return doubles(test::download(dx));
}

void expect_close(const Tensor& got, const Matrix& expected, double tolerance) {
  EXPECT_LE(test::relative_error(test::download(got), std::vector<float>(expected.begin(), expected.end())), tolerance);
}

// An f16 result is off by half a unit in its last place, and its f32 sum of so many terms by 2^-24 each at worst.
double rounded(std::size_t terms) { return 0x1p-11 + static_cast<double>(terms + 4) * 0x1p-24; }

class LoraMatrix : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (test::must_skip(lora_matrix_fits(test::device(), GetParam().shape)))
      GTEST_SKIP() << "The adapter has no matrices.";
  }
};

TEST_P(LoraMatrix, PackIsTheMastersInF16) {
  const Case& c = GetParam();
  const Group made(c);
  const std::uint32_t rank = c.shape.padded_rank(), inputs = c.shape.inputs;
  Matrix a(std::size_t{c.shape.width()} * inputs), b(std::size_t{c.shape.all_outputs()} * rank);
  std::size_t first = 0;
  for (std::size_t i = 0; i < c.shape.outputs.size(); first += c.shape.outputs[i++]) {
    if (!c.adapted[i]) continue;
    const auto a_values = test::random_values(std::size_t{c.shape.rank} * inputs, 10 + i, 0.3f);
    const auto b_values = test::random_values(std::size_t{c.shape.rank} * c.shape.outputs[i], 20 + i, 0.3f);
    const auto half_of = [](float value) { return f16_to_f32(f32_to_f16(value)); };
    for (std::size_t j = 0; j < a_values.size(); ++j) a[i * rank * inputs + j] = half_of(a_values[j] * 64.0f);
    for (std::size_t j = 0; j < b_values.size(); ++j) {
      b[(first + j / c.shape.rank) * rank + j % c.shape.rank] = half_of(b_values[j] * scaling[i] * 64.0f / weight_scale);
    }
  }
  EXPECT_EQ(made.a, a);
  EXPECT_EQ(made.b, b);
}

TEST_P(LoraMatrix, DownEqualsTheFormula) {
  const Case& c = GetParam();
  const Group made(c);
  const std::uint32_t width = c.shape.width(), inputs = c.shape.inputs;
  const Operand x = make_operand(c.rows, inputs, 1e4f, 1);
  GuardedTensor h(DType::f16, {c.rows, width});
  test::run(LoraDownMatrix{
      .group = made.group(), .x = x.data, .h = h.tensor(), .scratch = make_scratch(c), .dropout = c.dropout});
  const Matrix data = doubles(test::download(x.data));
  Matrix expected(std::size_t{c.rows} * width);
  for (std::size_t i = 0; i < c.shape.outputs.size(); ++i) {
    const Matrix mask = mask_of(c, i);
    for (std::size_t row = 0; row < c.rows; ++row) {
      for (std::size_t r = i * c.shape.padded_rank(); r < (i + 1) * c.shape.padded_rank(); ++r) {
        double sum = 0;
        for (std::size_t k = 0; k < inputs; ++k)
          sum += data[row * inputs + k] * mask[row * inputs + k] * made.a[r * inputs + k];
        expected[row * width + r] = sum * 0x1p-12;
      }
    }
  }
  expect_close(h.tensor(), expected, rounded(inputs));
  h.expect_guards_intact();
}

// Gradients of the projections that have an adapter, as parts of one buffer or of several.
struct Gradients {
  Gradients(const Case& c, bool one_buffer) {
    std::uint64_t size = 0;
    const auto place = [&](std::uint32_t rows, std::uint32_t columns) {
      if (!one_buffer)
        return whole.emplace_back(DType::f32, std::initializer_list<std::uint32_t>{rows, columns}).tensor();
      const Tensor part = whole.front().tensor().part(size, {rows, columns});
      size += (std::uint64_t{rows} * columns + 63) / 64 * 64;
      return part;
    };
    whole.reserve(6);
    if (one_buffer) {
      const std::uint32_t most = 3 * c.shape.rank * (c.shape.inputs + c.shape.all_outputs() + 64);
      whole.emplace_back(DType::f32, std::initializer_list<std::uint32_t>{most});
    }
    for (std::size_t i = 0; i < c.shape.outputs.size(); ++i)
      if (c.adapted[i]) a[i] = place(c.shape.rank, c.shape.inputs);
    for (std::size_t i = 0; i < c.shape.outputs.size(); ++i)
      if (c.adapted[i]) b[i] = place(c.shape.outputs[i], c.shape.rank);
    for (const auto& tensor : whole) fill(tensor.tensor(), std::vector<float>(tensor.tensor().size(), 0.0f));
  }
  std::vector<GuardedTensor> whole;
  std::array<Tensor, 3> a, b;  // zero
};

// sum over rows of factor * left(row, i) * right(row, j), of the columns given.
struct Columns {
  const Matrix& values;
  std::size_t stride, first, count;
};

Matrix product_over_rows(const Case& c, const Matrix& factors, const Columns& left, const Columns& right) {
  Matrix result(left.count * right.count);
  for (std::size_t row = 0; row < c.rows; ++row)
    for (std::size_t i = 0; i < left.count; ++i)
      for (std::size_t j = 0; j < right.count; ++j)
        result[i * right.count + j] += factors[row] * left.values[row * left.stride + left.first + i] *
                                       right.values[row * right.stride + right.first + j];
  return result;
}

Matrix dh_of(const Case& c, const Group& made, const Matrix& dy) {
  const std::uint32_t width = c.shape.width(), rank = c.shape.padded_rank(), outputs = c.shape.all_outputs();
  Matrix dh(std::size_t{c.rows} * width);
  std::size_t first = 0;
  for (std::size_t i = 0; i < c.shape.outputs.size(); first += c.shape.outputs[i++]) {
    for (std::size_t row = 0; row < c.rows; ++row) {
      for (std::size_t r = 0; r < rank; ++r) {
        double sum = 0;
        for (std::size_t n = first; n < first + c.shape.outputs[i]; ++n) {
          sum += dy[row * outputs + n] * made.b[n * rank + r];
        }
        dh[row * width + i * rank + r] = sum * 0x1p-12;
      }
    }
  }
  return dh;
}

TEST_P(LoraMatrix, BackwardEqualsTheFormula) {
  const Case& c = GetParam();
  const Group made(c);
  const std::uint32_t width = c.shape.width(), inputs = c.shape.inputs, outputs = c.shape.all_outputs();
  const Operand x = make_operand(c.rows, inputs, 1e4f, 1), dy = make_operand(c.rows, outputs, 1e-6f, 2);
  const Tensor h =
      test::upload(test::random_values(std::size_t{c.rows} * width, 5, 100.0f), {c.rows, width}, DType::f16);
  const Matrix x_data = doubles(test::download(x.data)), dy_data = doubles(test::download(dy.data));
  const Matrix h_values = doubles(test::download(h));
  Matrix factors = doubles(test::download(x.scale));
  const auto dy_scale = test::download(dy.scale);
  for (std::size_t row = 0; row < c.rows; ++row) factors[row] *= double{dy_scale[row]} * 0x1p6;
  // What lies below the largest factor of a part is off by half of f16's least, 2^-25, where values are up to 100.
  const double tolerance = (c.rows + 16) * 0x1p-24;
  for (const bool one_buffer : {true, false}) {
    GuardedTensor dh(DType::f16, {c.rows, width});
    Gradients to(c, one_buffer);
    const LoraBackwardMatrix op{.group = made.group(), .x = x, .dy = dy, .h = h, .dh = dh.tensor(), .da = to.a,
                                .db = to.b, .scratch = make_scratch(c), .dropout = c.dropout};
    test::run(op);
    test::run(op);
    expect_close(dh.tensor(), dh_of(c, made, dy_data), rounded(outputs));
    const Matrix dh_values = doubles(test::download(dh.tensor()));
    std::size_t first = 0;
    for (std::size_t i = 0; i < c.shape.outputs.size(); first += c.shape.outputs[i++]) {
      if (!c.adapted[i]) continue;
      Matrix dropped = mask_of(c, i);
      for (std::size_t j = 0; j < dropped.size(); ++j) dropped[j] *= x_data[j];
      const std::size_t narrow = i * c.shape.padded_rank();
      Matrix b = product_over_rows(c, factors, {dy_data, outputs, first, c.shape.outputs[i]},
                                   {h_values, width, narrow, c.shape.rank});
      Matrix a = product_over_rows(c, factors, {dh_values, width, narrow, c.shape.rank}, {dropped, inputs, 0, inputs});
      for (double& value : b) value *= 2 * double{scaling[i]};
      for (double& value : a) value *= 2 * weight_scale;
      expect_close(to.b[i], b, tolerance);
      expect_close(to.a[i], a, tolerance);
    }
    dh.expect_guards_intact();
    for (const auto& tensor : to.whole) tensor.expect_guards_intact();
  }
}

TEST_P(LoraMatrix, UnpackIsTheHiddenGradients) {
  const Case& c = GetParam();
  const Group made(c);
  const std::uint32_t width = c.shape.width(), rank = c.shape.rank;
  const Tensor hidden =
      test::upload(test::random_values(std::size_t{c.rows} * width, 5, 100.0f), {c.rows, width}, DType::f16);
  const auto values = test::download(hidden), scales = test::download(make_operand(c.rows, 8, 1.0f, 1).scale);
  for (std::uint32_t i = 0; i < c.shape.outputs.size(); ++i) {
    GuardedTensor got(DType::f32, {c.rows, rank});
    test::run(LoraUnpack{.group = made.group(), .projection = i, .dh = hidden,
                         .scale = test::upload(scales, {c.rows}), .values = got.tensor()});
    std::vector<float> expected;
    for (std::size_t row = 0; row < c.rows; ++row) {
      for (std::size_t r = 0; r < rank; ++r) {
        expected.push_back(values[row * width + i * c.shape.padded_rank() + r] * scales[row] * 64.0f * weight_scale);
      }
    }
    EXPECT_EQ(test::download(got.tensor()), expected);
    got.expect_guards_intact();
  }
}

// Fewer rows are cut into more parts, whose sums need more room.
TEST(LoraMatrixScratch, ServesFewerRowsToo) {
  Case c{.rows = 1000, .shape = {.rank = 16, .inputs = 512, .outputs = {512, 256}}};
  if (test::must_skip(lora_matrix_fits(test::device(), c.shape))) GTEST_SKIP() << "The adapter has no matrices.";
  const Group made(c);
  const Tensor scratch = make_scratch(c);
  const Gradients to(c, true);
  for (const std::uint32_t rows : {1u, 33u, 64u, 100u, 160u, 520u}) {
    const Operand x = make_operand(rows, 512, 1.0f, 1), dy = make_operand(rows, 768, 1.0f, 2);
    const Tensor h = test::device().tensor(DType::f16, {rows, 32}, "h"), dh = test::device().tensor(DType::f16, {rows, 32}, "dh");
    EXPECT_NO_THROW(test::run(LoraDownMatrix{.group = made.group(), .x = x.data, .h = h, .scratch = scratch})) << rows;
    EXPECT_NO_THROW(test::run(LoraBackwardMatrix{.group = made.group(), .x = x, .dy = dy, .h = h, .dh = dh, .da = to.a,
                                                 .db = to.b, .scratch = scratch})) << rows;
  }
}

// On the software adapter x takes two bindings: the second adds to what the first gives.
TEST(LoraMatrixSlices, RowsBeyondOneBinding) {
  const Case c{.rows = 8300, .shape = {.rank = 4, .inputs = 8192, .outputs = {8}}};
  if (test::must_skip(lora_matrix_fits(test::device(), c.shape))) GTEST_SKIP() << "The adapter has no matrices.";
  const Group made(c);
  const auto x_value = [](std::size_t row, std::size_t k) { return static_cast<float>((row * 7 + k * 13) % 23) - 11; };
  std::vector<_Float16> values(std::size_t{c.rows} * c.shape.inputs);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<_Float16>(x_value(i / c.shape.inputs, i % c.shape.inputs));
  }
  const Operand x{test::device().tensor<_Float16>(DType::f16, {c.rows, c.shape.inputs}, values, "x"),
                  test::upload(std::vector<float>(c.rows, 1.0f), {c.rows})};
  const Operand dy{test::upload(test::random_values(std::size_t{c.rows} * 8, 3), {c.rows, 8}, DType::f16), x.scale};
  GuardedTensor h(DType::f16, {c.rows, 16}), dh(DType::f16, {c.rows, 16});
  Gradients to(c, true);
  const Tensor scratch = make_scratch(c);
  test::run(LoraDownMatrix{.group = made.group(), .x = x.data, .h = h.tensor(), .scratch = scratch});
  test::run(LoraBackwardMatrix{.group = made.group(), .x = x, .dy = dy, .h = h.tensor(), .dh = dh.tensor(),
                               .da = {to.a[0]}, .db = {to.b[0]}, .scratch = scratch});
  const auto h_values = test::download(h.tensor()), dh_values = test::download(dh.tensor());
  for (const std::size_t row : {0, 5000, 8100, 8299}) {
    double sum = 0, most = 0;
    for (std::size_t k = 0; k < c.shape.inputs; ++k) {
      sum += x_value(row, k) * made.a[k] * 0x1p-12;
      most += std::fabs(x_value(row, k) * made.a[k]) * 0x1p-12;
    }
    EXPECT_NEAR(h_values[row * 16], sum, std::fabs(sum) * 0x1p-11 + most * 0x1p-20) << row;
  }
  const auto da = test::download(to.a[0]);
  for (const std::size_t k : {0, 77, 8191}) {
    double sum = 0, most = 0;
    for (std::size_t row = 0; row < c.rows; ++row) {
      sum += double{dh_values[row * 16]} * x_value(row, k) * 0x1p6 * weight_scale;
      most += std::fabs(double{dh_values[row * 16]} * x_value(row, k)) * 0x1p6 * weight_scale;
    }
    EXPECT_NEAR(da[k], sum, most * 0x1p-20) << k;
  }
  h.expect_guards_intact();
  dh.expect_guards_intact();
}

// So many outputs that the backward goes over the rows in two passes on the software adapter.
TEST(LoraMatrixSlices, OutputsBeyondOnePass) {
  const Case c{.rows = 1700, .shape = {.rank = 4, .inputs = 8, .outputs = {9728, 9728}}};
  if (test::must_skip(lora_matrix_fits(test::device(), c.shape))) GTEST_SKIP() << "The adapter has no matrices.";
  const Group made(c);
  const std::size_t outputs = c.shape.all_outputs();
  const auto dy_value = [](std::size_t row, std::size_t n) { return static_cast<float>((row * 7 + n * 13) % 23) - 11; };
  std::vector<_Float16> values(c.rows * outputs);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<_Float16>(dy_value(i / outputs, i % outputs));
  }
  const Operand dy{test::device().tensor<_Float16>(DType::f16, {c.rows, c.shape.all_outputs()}, values, "dy"),
                   test::upload(std::vector<float>(c.rows, 1.0f), {c.rows})};
  const Operand x{test::upload(test::random_values(std::size_t{c.rows} * 8, 3), {c.rows, 8}, DType::f16), dy.scale};
  const Tensor h = test::upload(test::random_values(std::size_t{c.rows} * 32, 4), {c.rows, 32}, DType::f16);
  GuardedTensor dh(DType::f16, {c.rows, 32});
  Gradients to(c, true);
  test::run(LoraBackwardMatrix{.group = made.group(), .x = x, .dy = dy, .h = h, .dh = dh.tensor(), .da = to.a,
                               .db = to.b, .scratch = make_scratch(c)});
  const auto dh_values = test::download(dh.tensor()), h_values = test::download(h);
  for (const std::size_t row : {0, 1663, 1664, 1699}) {
    double sum = 0, most = 0;
    for (std::size_t n = 9728; n < outputs; ++n) {
      sum += dy_value(row, n) * made.b[n * 16 + 2] * 0x1p-12;
      most += std::fabs(dy_value(row, n) * made.b[n * 16 + 2]) * 0x1p-12;
    }
    EXPECT_NEAR(dh_values[row * 32 + 16 + 2], sum, std::fabs(sum) * 0x1p-11 + most * 0x1p-20) << row;
  }
  const auto db = test::download(to.b[1]);
  for (const std::size_t n : {0, 5000, 9727}) {
    double sum = 0, most = 0;
    for (std::size_t row = 0; row < c.rows; ++row) {
      sum += scaling[1] * dy_value(row, 9728 + n) * h_values[row * 32 + 16 + 3] * 0x1p6;
      most += scaling[1] * std::fabs(dy_value(row, 9728 + n) * h_values[row * 32 + 16 + 3]) * 0x1p6;
    }
    EXPECT_NEAR(db[n * 4 + 3], sum, most * 0x1p-20) << n;
  }
  dh.expect_guards_intact();
}

INSTANTIATE_TEST_SUITE_P(Cases, LoraMatrix, testing::ValuesIn(cases),
                         [](const auto& c) { return fmt::format("{}", c.index); });

}  // namespace
}  // namespace nibble::lora_matrix_test
