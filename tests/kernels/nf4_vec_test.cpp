#include "nibble/kernels/nf4_vec.h"

#include "nibble/base/error.h"
#include "nibble/base/nf4_table.h"
#include "tests/support/gpu_test.h"

#include <cmath>
#include <optional>

namespace nibble::nf4_vec_test {
namespace {

using test::GuardedTensor;
using Matrix = std::vector<double>;

constexpr float eps = 1e-6f;
constexpr std::array<float, 3> scaling{0.75f, 1.5f, -0.5f};  // of the projections

struct Case {
  std::uint32_t m, n, k;  // n of the weight
  bool norm = false, plus = false, swiglu = false;
  std::uint32_t rank = 0;
  std::vector<std::uint32_t> ends = {};
  std::array<bool, 3> adapted{true, true, true};
  std::uint32_t enough_lanes = 0;
  CodeBook codes = CodeBook::nf4;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << fmt::format("{}x{}x{} norm {} plus {} swiglu {} rank {}", c.m, c.n, c.k, c.norm, c.plus, c.swiglu, c.rank);
}

// Everything that a case takes part in, on the device and for a reference in double.
struct Made {
  explicit Made(const Case& c) {
    Rng rng(c.n + c.k);
    std::vector<std::uint8_t> bytes(std::size_t{c.n} * c.k / 2);
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(rng.below(256));
    auto absmax = test::random_values(std::size_t{c.n} * c.k / nf4_block, 1);
    for (float& value : absmax) value = std::fabs(value) * 0.1f;
    for (std::size_t i = 0; i < 2 * bytes.size(); ++i) {
      w.push_back(double{codes_of(c.codes)[i % 2 == 0 ? bytes[i / 2] >> 4 : bytes[i / 2] & 15u]} * absmax[i / nf4_block]);
    }
    nf4.packed = test::device().tensor<std::uint8_t>(DType::u8, {static_cast<std::uint32_t>(bytes.size())}, bytes, "nf4");
    nf4.codes = c.codes;
    nf4.absmax = test::upload(absmax, {static_cast<std::uint32_t>(absmax.size())});
    const auto values = test::random_values(std::size_t{c.m} * c.k, 2, 3.0f), weight = test::random_values(c.k, 3, 2.0f);
    input = {.x = test::upload(values, {c.m, c.k}), .weight = c.norm ? test::upload(weight, {c.k}) : Tensor{}, .eps = eps};
    for (std::uint32_t m = 0; m < c.m; ++m) {
      double squares = 0;
      for (std::uint32_t i = 0; i < c.k; ++i) squares += double{values[m * c.k + i]} * values[m * c.k + i];
      for (std::uint32_t i = 0; i < c.k; ++i) {
        x.push_back(values[m * c.k + i] * (c.norm ? weight[i] / std::sqrt(squares / c.k + double{eps}) : 1.0));
      }
    }
    if (c.rank > 0) make_adapters(c);
  }

  void make_adapters(const Case& c) {
    const auto count = static_cast<std::uint32_t>(c.ends.size());
    lora = {.rank = c.rank, .scaling = scaling, .b = {}, .ends = {c.n, c.n, c.n}, .h = {}};
    std::copy(c.ends.begin(), c.ends.end(), lora.ends.begin());
    for (std::uint32_t i = 0; i < count; ++i) {
      const std::uint32_t outputs = c.ends[i] - (i == 0 ? 0 : c.ends[i - 1]);
      a.push_back(test::random_values(std::size_t{c.rank} * c.k, 10 + i, 0.2f));
      b.push_back(test::random_values(std::size_t{outputs} * c.rank, 20 + i, 0.2f));
      if (!c.adapted[i]) continue;
      a_tensors[i] = test::upload(a[i], {c.rank, c.k});
      lora.b[i] = test::upload(b[i], {outputs, c.rank});
    }
    hidden.emplace(DType::f32, std::initializer_list<std::uint32_t>{c.m, count * c.rank});
    lora.h = hidden->tensor();
  }

  double product(const Case& c, std::uint32_t m, std::uint32_t n) const {
    double sum = 0;
    for (std::uint32_t i = 0; i < c.k; ++i) sum += x[m * c.k + i] * w[std::size_t{n} * c.k + i];
    if (c.rank == 0) return sum;
    std::uint32_t p = 0, begin = 0;
    while (n >= c.ends[p]) begin = c.ends[p++];
    if (!c.adapted[p]) return sum;
    for (std::uint32_t r = 0; r < c.rank; ++r) {
      double h = 0;
      for (std::uint32_t i = 0; i < c.k; ++i) h += x[m * c.k + i] * a[p][r * c.k + i];
      sum += double{scaling[p]} * h * b[p][(n - begin) * c.rank + r];
    }
    return sum;
  }

  Nf4 nf4;
  VecInput input;
  Matrix w, x;
  std::vector<std::vector<float>> a, b;
  std::array<Tensor, 3> a_tensors;
  VecLora lora = {};
  std::optional<GuardedTensor> hidden;
};

class Nf4VecTest : public testing::TestWithParam<Case> {};

// f32 sums of K terms of a normal size: 2^-24 sqrt(K) of them, and more where they cancel.
TEST_P(Nf4VecTest, EqualsTheFormula) {
  const Case& c = GetParam();
  const Made made(c);
  const std::uint32_t outputs = c.swiglu ? c.n / 2 : c.n;
  const auto before = test::random_values(std::size_t{c.m} * outputs, 5, 10.0f);
  std::vector<float> expected;
  for (std::uint32_t m = 0; m < c.m; ++m) {
    for (std::uint32_t n = 0; n < outputs; ++n) {
      double value = made.product(c, m, n);
      if (c.swiglu) value = value / (1 + std::exp(-value)) * made.product(c, m, n + outputs);
      expected.push_back(static_cast<float>(value + (c.plus ? double{before[m * outputs + n]} : 0.0)));
    }
  }
  for (const auto type : {gpu::AdapterType::software, gpu::AdapterType::discrete}) {
    if (c.rank > 0) {
      test::run(LoraVec{.input = made.input, .rank = c.rank, .projections = static_cast<std::uint32_t>(c.ends.size()),
                        .a = made.a_tensors, .h = made.lora.h, .kernel_for = type});
      made.hidden->expect_guards_intact();
    }
    GuardedTensor y(DType::f32, {c.m, outputs});
    if (c.swiglu) {
      test::run(Nf4VecSwiGlu{.input = made.input, .w = made.nf4, .y = y.tensor(), .lora = made.lora, .kernel_for = type,
                             .enough_lanes = c.enough_lanes});
    } else {
      test::run(Nf4Vec{.input = made.input, .w = made.nf4, .y = y.tensor(),
                       .plus = c.plus ? test::upload(before, {c.m, outputs}) : Tensor{}, .lora = made.lora, .kernel_for = type,
                       .enough_lanes = c.enough_lanes});
    }
    EXPECT_LT(test::relative_error(test::download(y.tensor()), expected), 4 * std::sqrt(c.k) * 0x1p-24);
    y.expect_guards_intact();
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, Nf4VecTest, testing::Values(
    Case{1, 2, 64}, Case{3, 35, 192}, Case{8, 130, 1024}, Case{1, 7, 2560, true}, Case{5, 33, 320, true, true},
    Case{2, 64, 128, false, true}, Case{1, 48, 256, true, false, true}, Case{4, 66, 64, false, false, true},
    Case{1, 96, 128, true, false, false, 8, {64, 80, 96}}, Case{3, 96, 128, true, false, false, 5, {64, 80, 96}, {true, false, true}},
    Case{2, 40, 192, false, true, false, 16, {40}}, Case{6, 64, 128, true, false, true, 4, {32, 64}},
    Case{1, 64, 128, true, false, true, 4, {32, 64}, {false, true, true}},
    // Groups of 32 to 256 lanes that share 4 or, of many outputs, 8; in the last step of a row some are without a word.
    Case{1, 9, 576, false, true}, Case{2, 6, 1088, true}, Case{1, 13, 2112, false, true}, Case{1, 8195, 576, true, true},
    Case{2, 8195, 64}, Case{1, 16390, 64, true, false, true}, Case{1, 8203, 128, true, false, false, 11, {8100, 8150, 8203}},
    Case{1, 5, 4160, true, false, false, 3, {2, 3, 5}},
    // One row, whose lanes do several steps of four or of eight outputs; the last workgroup's end beyond the weight.
    Case{1, 75, 2560, true, true, false, 0, {}, {}, 1000}, Case{1, 131, 576, true, false, false, 4, {100, 110, 131}, {true, true, true}, 80},
    Case{1, 210, 192, false, true, false, 0, {}, {}, 16}, Case{1, 98, 320, true, false, true, 5, {49, 98}, {true, true}, 64},
    Case{1, 1030, 64, true, false, true, 0, {}, {}, 1},
    // FP4, in the kernels of one row and of several.
    Case{1, 75, 576, false, false, false, 0, {}, {}, 0, CodeBook::fp4}, Case{3, 35, 192, false, false, false, 0, {}, {}, 0, CodeBook::fp4}));

TEST(Nf4Vec, TheSameBitsEachRun) {
  const Case c{1, 40, 4160, true, false, true, 7, {20, 40}};
  const Made made(c);
  const auto compute = [&] {
    GuardedTensor y(DType::f32, {c.m, c.n / 2});
    test::run(LoraVec{.input = made.input, .rank = c.rank, .projections = 2, .a = made.a_tensors, .h = made.lora.h,
                      .kernel_for = gpu::AdapterType::discrete});
    test::run(Nf4VecSwiGlu{.input = made.input, .w = made.nf4, .y = y.tensor(), .lora = made.lora,
                           .kernel_for = gpu::AdapterType::discrete});
    return test::download(y.tensor());
  };
  EXPECT_EQ(compute(), compute());
}

TEST(Nf4VecRefuses, WhatDoesNotFit) {
  const Case c{2, 96, 128, true, true, false, 8, {64, 80, 96}};
  const Made made(c);
  const Tensor y = test::upload(std::vector<float>(2 * 96), {2, 96});
  gpu::Recorder recorder(test::device());
  const auto refuse = [&](const std::function<void(Nf4Vec&)>& change) {
    Nf4Vec bad{.input = made.input, .w = made.nf4, .y = y, .lora = made.lora};
    change(bad);
    EXPECT_THROW(record(recorder, bad), Error);
  };
  refuse([](Nf4Vec& op) { op.input.x = test::upload(std::vector<float>(9 * 128), {9, 128}); });
  refuse([](Nf4Vec& op) { op.input.x = test::upload(std::vector<float>(2 * 72), {2, 72}); });
  refuse([](Nf4Vec& op) { op.input.weight = test::upload(std::vector<float>(64), {64}); });
  refuse([&](Nf4Vec& op) { op.y = y.view({2, 90}); });
  refuse([](Nf4Vec& op) { op.lora.ends = {64, 60, 96}; });
  refuse([](Nf4Vec& op) { op.lora.b = {}; });
  refuse([](Nf4Vec& op) { op.lora.h = op.lora.h.view({2, 16}); });
}

}  // namespace
}  // namespace nibble::nf4_vec_test
