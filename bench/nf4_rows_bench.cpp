// bench_nf4_rows [ROWS...]: products of a few rows with the joint weights of a Qwen3-4B layer in NF4, as generation of several texts has
// them: decoded on their way to matrix units, and up to eight rows by vectors. Some outputs are compared with sums in double first.
// Without timestamps; each dispatch waits for the one before it.

#include "bench/timing.h"
#include "nibble/base/error.h"
#include "nibble/base/nf4_table.h"
#include "nibble/base/rng.h"
#include "nibble/kernels/nf4_vec.h"
#include "nibble/kernels/pack_rows.h"
#include "nibble/kernels/product_matrix.h"
#include "nibble/kernels/product_vec.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <vector>

namespace nibble::bench {
namespace {

constexpr std::uint32_t copies = 4;  // of a weight: none of the larger ones is found in a cache of 50 MB
constexpr float largest = 0.125f;    // of absmax

struct Joint {
  const char* name;
  std::uint32_t out, in;
};

class Bench {
 public:
  Bench(gpu::Device& device, const Joint& joint) : device_(device), joint_(joint) {
    Rng rng(std::uint64_t{joint.out} * joint.in);
    codes_.resize(std::size_t{joint.out} * joint.in / 8);
    absmax_.resize(std::size_t{joint.out} * joint.in / nf4_block);
    for (std::uint32_t& word : codes_) word = static_cast<std::uint32_t>(rng.below(1u << 16)) << 16 | static_cast<std::uint32_t>(rng.below(1u << 16));
    for (float& scale : absmax_) scale = rng.uniform(0.01f, largest);
    for (std::uint32_t i = 0; i < copies; ++i) {
      weights_.push_back({.packed = device.tensor<std::uint32_t>(DType::u32, {joint.out, joint.in / 8}, codes_, "codes"),
                          .absmax = device.tensor<float>(DType::f32, {joint.out, joint.in / nf4_block}, absmax_, "absmax")});
    }
    scratch_ = device.tensor(DType::f32, {32u << 20}, "scratch");
  }

  bool run(std::uint32_t rows) {
    Rng rng(rows);
    x_.resize(std::size_t{rows} * joint_.in);
    for (float& value : x_) value = rng.uniform(-1, 1);
    const Tensor x = device_.tensor<float>(DType::f32, {rows, joint_.in}, x_, "x"), y = device_.tensor(DType::f32, {rows, joint_.out}, "y");
    bool right = true;
    if (matrix_fits(device_, joint_.out, joint_.in)) {
      const Operand packed = make_operand(device_, ProductPath::matrix, rows, joint_.in, "x");
      record_now([&](gpu::Recorder& recorder) { record(recorder, PackRows{.x = x, .y = packed}); });
      const auto product = [&] {
        const Nf4& w = weight();
        return MatrixProduct{.x = packed, .w = {.data = w.packed, .scale = largest, .absmax = w.absmax}, .y = y, .scratch = scratch_};
      };
      right &= time("matrices", rows, y, 0x1p-11, [&](gpu::Recorder& recorder) { record_matrix_nt(recorder, product()); });
    }
    if (rows <= vec_rows) {
      right &= time("vectors", rows, y, 0x1p-18, [&](gpu::Recorder& recorder) { record(recorder, Nf4Vec{.input = {.x = x, .weight = {}}, .w = weight(), .y = y}); });
    }
    return right;
  }

 private:
  const Nf4& weight() { return weights_[next_++ % copies]; }

  void record_now(const Record& record) {
    gpu::Recorder recorder(device_);
    record(recorder);
    recorder.submit();
  }

  double product(std::uint32_t m, std::uint32_t row) const {
    double sum = 0;
    for (std::uint32_t k = 0; k < joint_.in; ++k) {
      const std::size_t at = std::size_t{row} * joint_.in + k;
      const std::uint32_t byte = codes_[at / 8] >> (8 * (at / 2 % 4)) & 255;
      sum += x_[std::size_t{m} * joint_.in + k] * double{nf4_codes[at % 2 ? byte & 15 : byte >> 4]} * absmax_[at / nf4_block];
    }
    return sum;
  }

  double error(std::uint32_t rows, const Tensor& y) {
    const auto values = device_.read<float>(y);
    Rng rng(7);
    double squares = 0, differences = 0;
    for (int i = 0; i < 200; ++i) {
      const std::uint32_t m = rng.below(rows), n = rng.below(joint_.out);
      const double value = product(m, n);
      squares += value * value, differences += std::pow(values[std::size_t{m} * joint_.out + n] - value, 2);
    }
    return std::sqrt(differences / squares);
  }

  bool time(const char* way, std::uint32_t rows, const Tensor& y, double allowed, const Record& record) {
    record_now(record);
    const double found = error(rows, y), seconds = seconds_of(device_, record), bytes = static_cast<double>(joint_.out) * joint_.in * (0.5 + 4.0 / nf4_block);
    std::printf("%-8s %2u rows  %-9s %7.1f us %6.0f GB/s  error %.1e  %s\n", joint_.name, rows, way, seconds * 1e6, bytes / seconds * 1e-9, found,
                found <= allowed ? "ok" : "WRONG");
    return found <= allowed;
  }

  gpu::Device& device_;
  Joint joint_;
  std::vector<std::uint32_t> codes_;
  std::vector<float> absmax_, x_;
  std::vector<Nf4> weights_;
  Tensor scratch_;  // of split products
  std::uint32_t next_ = 0;
};

bool run(const std::vector<std::uint32_t>& rows) {
  gpu::Device device;
  std::printf("%s\n", device.info().name.c_str());
  bool right = true;
  for (const Joint& joint : {Joint{"qkv", 6144, 2560}, Joint{"o", 2560, 4096}, Joint{"gate_up", 19456, 2560}, Joint{"down", 2560, 9728}}) {
    Bench bench(device, joint);
    for (const std::uint32_t m : rows) right &= bench.run(m);
  }
  return right;
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) try {
  std::vector<std::uint32_t> rows;
  for (int i = 1; i < argc; ++i) rows.push_back(static_cast<std::uint32_t>(std::strtoul(argv[i], nullptr, 10)));
  if (rows.empty()) rows = {2, 8, 16, 32};
  return nibble::bench::run(rows) ? 0 : 3;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 3;
}
