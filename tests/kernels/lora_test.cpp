#include "nibble/kernels/lora.h"

#include "nibble/base/error.h"
#include "tests/support/gpu_test.h"

#include <cmath>

namespace nibble::lora_test {
namespace {

using test::GuardedTensor;
using Matrix = std::vector<double>;

// Rows, outputs N, inputs K, rank.
struct Shape {
  std::uint32_t m, n, k, r;
};

const Shape shapes[] = {{1, 1, 1, 1}, {5, 7, 9, 3}, {33, 65, 40, 8}, {70, 128, 132, 16}, {300, 36, 20, 5}, {1030, 64, 96, 4},
                        {19, 260, 130, 256}};

// The adapter's arithmetic in double on given values: mask is dropout's factor per element of x.
struct Reference {
  Shape s;
  float scaling;
  Matrix x, a, b, mask;

  double dropped(std::size_t m, std::size_t k) const { return x[m * s.k + k] * mask[m * s.k + k]; }

  Matrix h() const {
    Matrix h(std::size_t{s.m} * s.r);
    for (std::size_t m = 0; m < s.m; ++m)
      for (std::size_t r = 0; r < s.r; ++r)
        for (std::size_t k = 0; k < s.k; ++k) h[m * s.r + r] += dropped(m, k) * a[r * s.k + k];
    return h;
  }

  // sum over m, n of dy * y: its gradients are what the backward kernels must give.
  double loss(const Matrix& dy) const {
    const Matrix inner = h();
    double sum = 0;
    for (std::size_t m = 0; m < s.m; ++m)
      for (std::size_t n = 0; n < s.n; ++n)
        for (std::size_t r = 0; r < s.r; ++r) sum += dy[m * s.n + n] * scaling * inner[m * s.r + r] * b[n * s.r + r];
    return sum;
  }
};

Matrix doubles(const std::vector<float>& values) { return {values.begin(), values.end()}; }

// An adapter, its operands on the device, and the same values for the reference.
struct Case {
  Reference reference;
  Operand x, dy;
  Tensor a, b;
  Matrix dy_values;
  Dropout dropout;
};

// The mask that the kernels use, found by sending ones through an identity-like adapter.
Matrix measured_mask(std::uint32_t rows, std::uint32_t columns, const Dropout& dropout) {
  const std::vector<float> ones(std::size_t{rows} * columns, 1.0f);
  const Tensor dh = test::upload(std::vector<float>(rows, 1.0f), {rows, 1});
  const Tensor a = test::upload(std::vector<float>(columns, 1.0f), {1, columns});
  const Tensor dx = test::upload(std::vector<float>(ones.size(), 0.0f), {rows, columns});
  gpu::Recorder recorder(test::device());
  record(recorder, LoraDownBackwardInput{.dh = dh, .a = a, .dx = dx, .dropout = dropout});
  recorder.submit();
  return doubles(test::download(dx));
}

Case make_case(const Shape& s, ProductPath path, const Dropout& dropout) {
  Case c;
  c.dropout = dropout;
  auto x = test::random_values(std::size_t{s.m} * s.k, 1);
  for (std::uint32_t k = 0; k < s.k; ++k) x[k] *= 1e6f;
  auto dy = test::random_values(std::size_t{s.m} * s.n, 2, 1e-6f);
  const auto a = test::random_values(std::size_t{s.r} * s.k, 3), b = test::random_values(std::size_t{s.n} * s.r, 4);
  c.x = test::upload_operand(x, s.m, s.k, path);
  c.dy = test::upload_operand(dy, s.m, s.n, path);
  c.a = test::upload(a, {s.r, s.k});
  c.b = test::upload(b, {s.n, s.r});
  c.dy_values = doubles(test::download(c.dy));
  c.reference = {s, 0.5f, doubles(test::download(c.x)), doubles(a), doubles(b), measured_mask(s.m, s.k, dropout)};
  return c;
}

// f32 sums of `terms` products: 2^-24 a term at worst; the 2-norm of many elements stays below it.
void expect_close(const Tensor& got, const Matrix& expected, std::uint32_t terms) {
  const std::vector<float> values = test::download(got);
  const std::vector<float> wanted(expected.begin(), expected.end());
  EXPECT_LE(test::relative_error(values, wanted), (terms + 4) * 0x1p-24);
}

void fill(const Tensor& tensor, const std::vector<float>& values) {
  test::device().write(tensor, std::as_bytes(std::span(values)));
}

class Lora : public testing::TestWithParam<ProductPath> {};

TEST_P(Lora, ForwardEqualsTheFormula) {
  for (const float probability : {0.0f, 0.25f}) {
    for (const Shape& s : shapes) {
      SCOPED_TRACE(fmt::format("{} {} {} rank {}", s.m, s.n, s.k, s.r));
      const auto c = make_case(s, GetParam(), {.probability = probability, .seed = 5, .stream = 3});
      GuardedTensor h(DType::f32, {s.m, s.r}), y(DType::f32, {s.m, s.n});
      fill(y.tensor(), std::vector<float>(std::size_t{s.m} * s.n, 1.0f));
      {
        gpu::Recorder recorder(test::device());
        record(recorder, LoraDown{.x = c.x, .a = c.a, .h = h.tensor(), .dropout = c.dropout});
        record(recorder, LoraUp{.h = h.tensor(), .b = c.b, .y = y.tensor(), .scaling = 0.5f});
        recorder.submit();
      }
      const Matrix hidden = c.reference.h();
      expect_close(h.tensor(), hidden, s.k);
      Matrix expected(std::size_t{s.m} * s.n, 1.0);
      for (std::size_t m = 0; m < s.m; ++m)
        for (std::size_t n = 0; n < s.n; ++n)
          for (std::size_t r = 0; r < s.r; ++r)
            expected[m * s.n + n] += 0.5 * hidden[m * s.r + r] * c.reference.b[n * s.r + r];
      expect_close(y.tensor(), expected, s.k + s.r);
      h.expect_guards_intact();
      y.expect_guards_intact();
    }
  }
}

TEST_P(Lora, BackwardEqualsFiniteDifferences) {
  for (const float probability : {0.0f, 0.5f}) {
    for (const Shape& s : shapes) {
      SCOPED_TRACE(fmt::format("{} {} {} rank {}", s.m, s.n, s.k, s.r));
      const auto c = make_case(s, GetParam(), {.probability = probability, .seed = 7, .stream = 1});
      const std::vector<float> hidden_f32 = [&] {
        const Matrix h = c.reference.h();
        return std::vector<float>(h.begin(), h.end());
      }();
      const Tensor h = test::upload(hidden_f32, {s.m, s.r});
      GuardedTensor dh(DType::f32, {s.m, s.r}), db(DType::f32, {s.n, s.r}), da(DType::f32, {s.r, s.k}),
          dx(DType::f32, {s.m, s.k});
      for (const auto* gradient : {&db, &da, &dx}) fill(gradient->tensor(), std::vector<float>(gradient->tensor().size(), 0.0f));
      const auto scratch_size = std::max<std::uint64_t>(1, lora_scratch(test::device(), s.m, s.n, s.k, s.r));
      const Tensor scratch = test::device().tensor(DType::f32, {static_cast<std::uint32_t>(scratch_size)}, "scratch");
      {
        gpu::Recorder recorder(test::device());
        record(recorder, LoraUpBackwardInput{.dy = c.dy, .b = c.b, .dh = dh.tensor(), .scaling = 0.5f});
        record(recorder, LoraUpBackwardWeight{.dy = c.dy, .h = h, .db = db.tensor(), .scaling = 0.5f, .scratch = scratch});
        record(recorder, LoraDownBackwardWeight{
                             .dh = dh.tensor(), .x = c.x, .da = da.tensor(), .dropout = c.dropout, .scratch = scratch});
        record(recorder, LoraDownBackwardInput{.dh = dh.tensor(), .a = c.a, .dx = dx.tensor(), .dropout = c.dropout});
        recorder.submit();
      }
      // The loss is linear in each argument, so a difference of any width is exact up to its own rounding.
      const auto expect_slopes = [&](const GuardedTensor& gradient, Matrix Reference::*member, std::uint32_t terms) {
        const auto got = test::download(gradient.tensor());
        std::vector<std::size_t> indices;
        Rng rng(9);
        for (int i = 0; i < 12; ++i) indices.push_back(rng.below(static_cast<std::uint32_t>(got.size())));
        const auto slopes = test::finite_differences(
            [&](const Matrix& values) {
              Reference moved = c.reference;
              moved.*member = values;
              return moved.loss(c.dy_values);
            },
            c.reference.*member, indices, 1.0);
        double largest = 0;
        for (const float value : got) largest = std::max(largest, std::fabs(double{value}));
        for (std::size_t i = 0; i < indices.size(); ++i) {
          EXPECT_NEAR(got[indices[i]], slopes[i], (terms + 16) * 0x1p-24 * largest) << indices[i];
        }
        gradient.expect_guards_intact();
      };
      expect_slopes(db, &Reference::b, s.m + s.k);
      expect_slopes(da, &Reference::a, s.m + s.n);
      expect_slopes(dx, &Reference::x, s.r + s.n);
      dh.expect_guards_intact();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, Lora, testing::ValuesIn(test::product_paths()),
                         [](const auto& path) { return test::name_of(path.param); });

TEST(Dropout, KeepsTheShareAndTheMeanAndRepeats) {
  const std::uint32_t rows = 301, columns = 516;
  for (const float probability : {0.05f, 0.5f}) {
    const Dropout dropout{.probability = probability, .seed = 11, .stream = 2};
    const Matrix mask = measured_mask(rows, columns, dropout);
    std::size_t zeros = 0;
    for (const double value : mask) {
      if (value == 0) ++zeros;
      else EXPECT_NEAR(value, 1 / (1 - probability), 1e-6);
    }
    // Five standard deviations of a binomial count.
    const double count = static_cast<double>(mask.size());
    EXPECT_NEAR(static_cast<double>(zeros), count * probability, 5 * std::sqrt(count * probability * (1 - probability)));
    EXPECT_EQ(mask, measured_mask(rows, columns, dropout));
    EXPECT_NE(mask, measured_mask(rows, columns, {.probability = probability, .seed = 12, .stream = 2}));
    EXPECT_NE(mask, measured_mask(rows, columns, {.probability = probability, .seed = 11, .stream = 3}));
  }
}

TEST(Dropout, DependsOnTheRowInTheStreamAlone) {
  const Dropout dropout{.probability = 0.3f, .seed = 1, .stream = 9};
  const Matrix whole = measured_mask(64, 37, dropout);
  Dropout later = dropout;
  later.first_row = 20;
  const Matrix part = measured_mask(44, 37, later);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + 20 * 37));
}

TEST(Dropout, ProbabilityOneIsRefused) {
  const Tensor t = test::upload(std::vector<float>(4, 1.0f), {2, 2});
  const Tensor y = test::upload(std::vector<float>(4, 1.0f), {2, 2});
  gpu::Recorder recorder(test::device());
  EXPECT_THROW(record(recorder, LoraDownBackwardInput{.dh = t, .a = t, .dx = y, .dropout = {.probability = 1.0f}}), Error);
}

}  // namespace
}  // namespace nibble::lora_test
