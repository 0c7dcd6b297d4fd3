#include "nibble/kernels/self_test.h"

#include "nibble/base/error.h"
#include "nibble/base/half.h"
#include "nibble/base/rng.h"
#include "nibble/kernels/convert.h"
#include "nibble/kernels/lora.h"
#include "nibble/kernels/product.h"
#include "nibble/kernels/random_fill.h"
#include "nibble/kernels/rms_norm.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;
using Floats = std::vector<float>;

// Odd rows; multiples of 8 in the others, without which the matrix path would hand over to f16 vectors.
constexpr std::uint32_t test_rows = 67, test_outputs = 136, test_inputs = 200, lora_rank = 5;
constexpr double f32_unit = 0x1p-24, f16_unit = 0x1p-11;  // largest relative error of rounding to nearest

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

Floats random_values(std::size_t count, std::uint64_t seed) {
  Rng rng(seed);
  Floats values(count);
  for (float& value : values) value = rng.normal();
  return values;
}

Tensor upload(gpu::Device& device, const Floats& values, std::uint32_t count, std::uint32_t columns,
              DType dtype = DType::f32) {
  if (dtype == DType::f32) return device.tensor<float>(dtype, {count, columns}, values, "self-test input");
  std::vector<std::uint16_t> halves(values.size());
  std::transform(values.begin(), values.end(), halves.begin(), f32_to_f16);
  return device.tensor<std::uint16_t>(dtype, {count, columns}, halves, "self-test input");
}

// Values that f16 holds exactly, so that a product's operands are the same on both sides.
Floats f16_values(std::size_t count, std::uint64_t seed) {
  Floats values = random_values(count, seed);
  for (float& value : values) value = f16_to_f32(f32_to_f16(value));
  return values;
}

// The largest error of y(i, j) = sum over l of a(i, l) * b(l, j), as a share of the sum of magnitudes.
template <typename A, typename B>
double worst_error(const Floats& y, std::uint32_t columns, std::uint32_t inner, A a, B b) {
  double worst = 0;
  for (std::size_t e = 0; e < y.size(); ++e) {
    double sum = 0, magnitude = 0;
    for (std::size_t l = 0; l < inner; ++l) {
      const double term = a(e / columns, l) * b(l, e % columns);
      sum += term;
      magnitude += std::fabs(term);
    }
    const double error = std::fabs(y[e] - sum) / magnitude;
    if (!(error <= worst)) worst = error;  // also takes a NaN, and keeps it
    if (std::isnan(worst)) break;
  }
  return worst;
}

class PathTester {
 public:
  PathTester(gpu::Device& device, ProductPath path) : device_(device), result_{.path = path} {}

  PathSelfTest run() {
    try {
      if (result_.path != ProductPath::f32) test_conversions();
      test_products();
      test_chain();
      measure();
    } catch (const DeviceError& error) {
      result_.failure = error.what();
    }
    return result_;
  }

 private:
  DType dtype() const { return operand_dtype(result_.path); }

  template <typename... Ops>
  void compute(const Ops&... ops) {
    gpu::Recorder recorder(device_);
    (record(recorder, ops), ...);
    recorder.submit();
    device_.check();
  }

  void add(std::string what, double error, double allowed) { result_.checks.push_back({std::move(what), error, allowed}); }

  // An operand with row scales other than 1.
  Operand operand(const Floats& values, std::uint32_t count, std::uint32_t columns) {
    Operand operand{.data = upload(device_, values, count, columns, dtype())};
    if (dtype() == DType::f16) {
      operand.scale = device_.tensor<float>(DType::f32, {count}, Floats(count, 0.5f), "self-test scale");
    }
    return operand;
  }

  void test_conversions() {
    std::vector<std::uint16_t> halves(65536);
    std::iota(halves.begin(), halves.end(), std::uint16_t{0});
    std::erase_if(halves, [](std::uint16_t bits) { return !std::isfinite(f16_to_f32(bits)); });
    const auto count = static_cast<std::uint32_t>(halves.size());
    const Tensor f16 = device_.tensor<std::uint16_t>(DType::f16, {count}, halves, "self-test halves");
    const Tensor f32 = device_.tensor(DType::f32, {count}, "self-test floats");
    const Tensor back = device_.tensor(DType::f16, {count}, "self-test halves");
    compute(Convert{.x = f16, .y = f32}, Convert{.x = f32, .y = back});
    const auto widened = device_.read<float>(f32);
    const auto narrowed = device_.read<std::uint16_t>(back);
    double wrong = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const float value = f16_to_f32(halves[i]);
      const bool exact = widened[i] == value && f16_to_f32(narrowed[i]) == value;
      if (std::fabs(value) >= 0x1p-14f) {
        wrong += exact ? 0 : 1;
      } else if (!exact) {  // WGSL lets a device take subnormals for zero
        const bool zeroed = std::fabs(widened[i]) <= std::fabs(value) && f16_to_f32(narrowed[i]) == 0;
        wrong += zeroed ? 0 : 1;
        result_.keeps_subnormals = false;
      }
    }
    add("f16 values that change on the way to f32 and back", wrong, 0);
    test_rounding();
  }

  // Values between f16's, exact ties among them; WGSL allows either neighbour.
  void test_rounding() {
    Floats values = random_values(4096, 1);
    for (int i = 0; i < 512; ++i) {
      values[static_cast<std::size_t>(i)] = std::ldexp(1.0f + (static_cast<float>(i) + 0.5f) * 0x1p-10f, i % 30 - 14);
    }
    values[512] = 65504.0f;
    values[513] = 65504.0f - 16.0f;
    const auto count = static_cast<std::uint32_t>(values.size());
    const Tensor y = device_.tensor(DType::f16, {count}, "self-test halves");
    compute(Convert{.x = device_.tensor<float>(DType::f32, {count}, values, "self-test floats"), .y = y});
    const auto halves = device_.read<std::uint16_t>(y);
    double worst = 0;
    for (std::size_t i = 0; i < count; ++i) {
      if (std::fabs(values[i]) < 0x1p-14f) continue;
      const double error = std::fabs(double(f16_to_f32(halves[i])) - values[i]) / std::fabs(values[i]);
      if (!(error <= worst)) worst = error;
    }
    add("f32 to f16, relative error", worst, 2 * f16_unit);
  }

  void test_products() {
    const Floats a = f16_values(std::size_t{test_rows} * test_inputs, 2), w = f16_values(std::size_t{test_outputs} * test_inputs, 3),
                 d = f16_values(std::size_t{test_rows} * test_outputs, 4);
    const Weight weight{upload(device_, w, test_outputs, test_inputs, dtype()), dtype() == DType::f16 ? 0.25f : 1.0f};
    const double factor = dtype() == DType::f16 ? 0.125 : 1.0;
    const Tensor y = device_.tensor(DType::f32, {test_rows, test_outputs}, "self-test y");
    const Tensor dx = device_.tensor(DType::f32, {test_rows, test_inputs}, "self-test dx");
    compute(ProductNT{.path = result_.path, .x = operand(a, test_rows, test_inputs), .w = weight, .y = y},
            ProductNN{.path = result_.path, .x = operand(d, test_rows, test_outputs), .w = weight, .y = dx});
    // n sums in f32 lose at most n * 2^-24 of the magnitudes; matrix units may cut off instead of rounding: twice that.
    const double forward = worst_error(
        device_.read<float>(y), test_outputs, test_inputs, [&](auto i, auto l) { return factor * a[i * test_inputs + l]; },
        [&](auto l, auto j) { return w[j * test_inputs + l]; });
    add("product x W^T, error", forward, 2 * (test_inputs + 4) * f32_unit);
    const double backward = worst_error(
        device_.read<float>(dx), test_inputs, test_outputs, [&](auto i, auto l) { return factor * d[i * test_outputs + l]; },
        [&](auto l, auto j) { return w[l * test_inputs + j]; });
    add("product dy W, error", backward, 2 * (test_outputs + 4) * f32_unit);
  }

  // y = n W^T + scaling (n A^T) B^T with n the normalised rows.
  void test_chain() {
    const Floats x = random_values(std::size_t{test_rows} * test_inputs, 5), w = f16_values(std::size_t{test_outputs} * test_inputs, 6),
                 norm = random_values(test_inputs, 7), a = random_values(std::size_t{lora_rank} * test_inputs, 8),
                 b = random_values(std::size_t{test_outputs} * lora_rank, 9);
    constexpr float eps = 1e-6f, scaling = 2.0f;
    const Operand n = make_operand(device_, result_.path, test_rows, test_inputs, "self-test n");
    const Tensor h = device_.tensor(DType::f32, {test_rows, lora_rank}, "self-test h");
    const Tensor y = device_.tensor(DType::f32, {test_rows, test_outputs}, "self-test y");
    compute(RmsNorm{.x = upload(device_, x, test_rows, test_inputs),
                    .weight = device_.tensor<float>(DType::f32, {test_inputs}, norm, "self-test norm"),
                    .y = n, .inv_rms = device_.tensor(DType::f32, {test_rows}, "self-test inv_rms"), .eps = eps},
            ProductNT{.path = result_.path, .x = n, .w = {upload(device_, w, test_outputs, test_inputs, dtype())}, .y = y},
            LoraDown{.x = n, .a = upload(device_, a, lora_rank, test_inputs), .h = h},
            LoraUp{.h = h, .b = upload(device_, b, test_outputs, lora_rank), .y = y, .scaling = scaling});
    // W + scaling B A on the host.
    std::vector<double> merged(w.begin(), w.end());
    for (std::size_t e = 0; e < merged.size(); ++e) {
      for (std::size_t r = 0; r < lora_rank; ++r) {
        merged[e] += double(scaling) * b[e / test_inputs * lora_rank + r] * a[r * test_inputs + e % test_inputs];
      }
    }
    const auto got = device_.read<float>(y);
    double error = 0, magnitude = 0;
    std::vector<double> normed(test_inputs);
    for (std::size_t i = 0; i < test_rows; ++i) {
      double squares = 0;
      for (std::size_t l = 0; l < test_inputs; ++l) squares += double(x[i * test_inputs + l]) * x[i * test_inputs + l];
      for (std::size_t l = 0; l < test_inputs; ++l) normed[l] = x[i * test_inputs + l] * norm[l] / std::sqrt(squares / test_inputs + eps);
      for (std::size_t j = 0; j < test_outputs; ++j) {
        double sum = 0;
        for (std::size_t l = 0; l < test_inputs; ++l) sum += normed[l] * merged[j * test_inputs + l];
        error += (got[i * test_outputs + j] - sum) * (got[i * test_outputs + j] - sum);
        magnitude += sum * sum;
      }
    }
    // Independent errors of n's elements: of rounding to f16, twice over for a device that cuts off; f32's sums stay below.
    add("norm, product and LoRA, relative error", std::sqrt(error / magnitude),
        dtype() == DType::f16 ? 2 * f16_unit : test_inputs * f32_unit);
  }

  void measure() {
    const bool software = device_.info().type == gpu::AdapterType::software;
    const bool discrete = device_.info().type == gpu::AdapterType::discrete;
    const std::uint32_t m = software ? 256 : discrete ? 4096 : 2048, n = software ? 512 : m;
    Operand x = make_operand(device_, result_.path, m, n, "self-test x");
    const Weight w{device_.tensor(dtype(), {n, n}, "self-test w")};
    const Tensor y = device_.tensor(DType::f32, {m, n}, "self-test y");
    compute(RandomFill{.x = x.data, .seed = 1}, RandomFill{.x = w.data, .seed = 2});
    if (x.scale) x.scale = device_.tensor<float>(DType::f32, {m}, Floats(m, 1.0f), "self-test scale");
    const ProductNT product{.path = result_.path, .x = x, .w = w, .y = y};
    const double flop = 2.0 * m * n * n, warm_up = software ? 0.1 : 0.4;
    // Not to be timed: compiling.
    compute(product);
    int repeats = 1;
    double best = std::numeric_limits<double>::infinity();
    for (const auto start = Clock::now(); seconds_since(start) < warm_up + 0.15;) {
      const auto begin = Clock::now();
      gpu::Recorder recorder(device_);
      for (int i = 0; i < repeats; ++i) record(recorder, product);
      recorder.submit();
      device_.wait("self-test");
      const double seconds = seconds_since(begin);
      best = std::min(best, seconds / repeats);
      // Long enough that starting and waiting do not count.
      if (seconds < 0.01) repeats *= 2;
    }
    device_.check();
    result_.flops_per_second = flop / best;
  }

  gpu::Device& device_;
  PathSelfTest result_;
};

}  // namespace

bool PathSelfTest::passed() const {
  return failure.empty() &&
         std::all_of(checks.begin(), checks.end(), [](const SelfCheck& check) { return check.passed(); });
}

std::vector<PathSelfTest> self_test(gpu::Device& device) {
  std::vector<PathSelfTest> results;
  for (const ProductPath path : {ProductPath::matrix, ProductPath::f16, ProductPath::f32}) {
    if (supports(device.info(), path)) results.push_back(PathTester(device, path).run());
  }
  return results;
}

}  // namespace nibble
