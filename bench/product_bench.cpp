// bench_product [M N K]...: the products of nibble/kernels at M rows through weights (N, K), by default those of the shipped
// tiny model on a software adapter and those of Qwen3-4B on a GPU. Each is verified on sampled elements, then timed.

#include "bench/timing.h"
#include "nibble/base/error.h"
#include "nibble/base/half.h"
#include "nibble/base/nf4_table.h"
#include "nibble/base/rng.h"
#include "nibble/kernels/lora.h"
#include "nibble/kernels/nf4.h"
#include "nibble/kernels/product.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace nibble::bench {
namespace {

struct Shape {
  std::uint32_t m, n, k;
};

std::vector<float> random_values(std::size_t count, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(count);
  for (float& value : values) value = rng.uniform(-1.0f, 1.0f);
  return values;
}

// A matrix on the device, and on the host as the device sees it.
struct Matrix {
  Tensor tensor;
  std::vector<float> values;
  std::uint32_t columns;
  double at(std::size_t row, std::size_t column) const { return values[row * columns + column]; }
};

Matrix make_matrix(gpu::Device& device, std::uint32_t rows, std::uint32_t columns, DType dtype, std::uint64_t seed) {
  Matrix matrix{.values = random_values(std::size_t{rows} * columns, seed), .columns = columns};
  if (dtype == DType::f32) {
    matrix.tensor = device.tensor<float>(dtype, {rows, columns}, matrix.values, "bench");
    return matrix;
  }
  std::vector<std::uint16_t> halves;
  halves.reserve(matrix.values.size());
  for (float& value : matrix.values) {
    halves.push_back(f32_to_f16(value));
    value = f16_to_f32(halves.back());
  }
  matrix.tensor = device.tensor<std::uint16_t>(dtype, {rows, columns}, halves, "bench");
  return matrix;
}

Operand operand_of(gpu::Device& device, const Matrix& matrix) {
  if (matrix.tensor.dtype() == DType::f32) return {matrix.tensor, {}};
  const std::uint32_t rows = matrix.tensor.dim(0);
  const std::vector<float> ones(rows, 1.0f);
  return {matrix.tensor, device.tensor<float>(DType::f32, {rows}, ones, "scales")};
}

// The largest error of sampled elements of y, relative to the root of the number of terms.
double sampled_error(gpu::Device& device, const Tensor& y, std::uint32_t terms,
                     const std::function<double(std::uint32_t, std::uint32_t, std::uint32_t)>& term) {
  const auto values = device.read<float>(y);
  const std::uint32_t rows = y.dim(0), columns = y.dim(1);
  Rng rng(5);
  double worst = 0;
  for (int i = 0; i < 200; ++i) {
    const std::uint32_t r = i == 0 ? rows - 1 : rng.below(rows), c = i == 0 ? columns - 1 : rng.below(columns);
    double sum = 0;
    for (std::uint32_t t = 0; t < terms; ++t) sum += term(r, c, t);
    const double error = std::fabs(sum - double{values[std::size_t{r} * columns + c]});
    worst = std::isfinite(error) ? std::max(worst, error) : HUGE_VAL;
  }
  return worst / std::sqrt(terms);
}

void print_row(const char* name, const char* variant, const Shape& s, double error, double seconds, double flops, double bytes) {
  std::printf("%-12s %-7s %6u %6u %6u  %9.3f ms %9.1f GFLOP/s %7.1f GB/s  error %.1e%s\n", name, variant, s.m, s.n, s.k,
              seconds * 1e3, flops / seconds * 1e-9, bytes / seconds * 1e-9, error, error < 3e-6 ? "" : "  WRONG");
  std::fflush(stdout);
}

void run_products(gpu::Device& device, ProductPath path, const char* variant, const Shape& s) {
  const DType dtype = operand_dtype(path);
  const Matrix w = make_matrix(device, s.n, s.k, dtype, 1);
  const Weight weight{.data = w.tensor};
  const double bytes = static_cast<double>(w.tensor.bytes()) + static_cast<double>(size_of(dtype)) * s.m * s.k + 4.0 * s.m * s.n;
  const double flops = 2.0 * s.m * s.n * s.k;
  {
    const Matrix x = make_matrix(device, s.m, s.k, dtype, 2);
    const ProductNT op{path, operand_of(device, x), weight, device.tensor(DType::f32, {s.m, s.n}, "y")};
    const double seconds = seconds_of(device, [&](gpu::Recorder& recorder) { record(recorder, op); });
    const double error = sampled_error(device, op.y, s.k, [&](auto r, auto c, auto t) { return x.at(r, t) * w.at(c, t); });
    print_row("nt", variant, s, error, seconds, flops, bytes);
  }
  const Matrix x = make_matrix(device, s.m, s.n, dtype, 3);
  const ProductNN op{path, operand_of(device, x), weight, device.tensor(DType::f32, {s.m, s.k}, "y")};
  const double seconds = seconds_of(device, [&](gpu::Recorder& recorder) { record(recorder, op); });
  const double error = sampled_error(device, op.y, s.n, [&](auto r, auto c, auto t) { return x.at(r, t) * w.at(t, c); });
  print_row("nn", variant, s, error, seconds, flops, bytes);
}

// The six LoRA operations, each timed alone; the products verify what they are made of.
void run_lora(gpu::Device& device, DType dtype, const Shape& s, std::uint32_t rank) {
  const Matrix x = make_matrix(device, s.m, s.k, dtype, 1), dy = make_matrix(device, s.m, s.n, dtype, 2);
  const Operand x_operand = operand_of(device, x), dy_operand = operand_of(device, dy);
  const Tensor a = make_matrix(device, rank, s.k, DType::f32, 3).tensor, b = make_matrix(device, s.n, rank, DType::f32, 4).tensor;
  const auto zeros = [&](std::uint32_t rows, std::uint32_t columns) { return device.tensor(DType::f32, {rows, columns}, "zeros"); };
  const Tensor h = zeros(s.m, rank), y = zeros(s.m, s.n), dx = zeros(s.m, s.k), da = zeros(rank, s.k), db = zeros(s.n, rank);
  const Tensor scratch = zeros(1, static_cast<std::uint32_t>(std::max<std::uint64_t>(1, lora_scratch(device, s.m, s.n, s.k, rank))));
  const double in_flops = 2.0 * s.m * s.k * rank, out_flops = 2.0 * s.m * s.n * rank;
  const double x_bytes = static_cast<double>(x.tensor.bytes()), dy_bytes = static_cast<double>(dy.tensor.bytes());
  const auto row = [&](const char* name, double flops, double bytes, const auto& op) {
    const double seconds = seconds_of(device, [&](gpu::Recorder& recorder) { record(recorder, op); });
    print_row(name, name_of(dtype).data(), s, 0, seconds, flops, bytes);
  };
  row("lora down", in_flops, x_bytes, LoraDown{.x = x_operand, .a = a, .h = h});
  row("lora up", out_flops, 8.0 * s.m * s.n, LoraUp{.h = h, .b = b, .y = y, .scaling = 0.5f});
  row("lora dh", out_flops, dy_bytes, LoraUpBackwardInput{.dy = dy_operand, .b = b, .dh = h});
  row("lora db", out_flops, dy_bytes, LoraUpBackwardWeight{.dy = dy_operand, .h = h, .db = db, .scratch = scratch});
  row("lora da", in_flops, x_bytes, LoraDownBackwardWeight{.dh = h, .x = x_operand, .da = da, .scratch = scratch});
  row("lora dx", in_flops, 8.0 * s.m * s.k, LoraDownBackwardInput{.dh = h, .a = a, .dx = dx});
}

void run_dequantize(gpu::Device& device, DType dtype, const Shape& s) {
  const std::uint32_t blocks = s.n * s.k / nf4_block;
  const Tensor packed = device.tensor(DType::u32, {s.n * s.k / 8}, "packed");
  const Tensor absmax = device.tensor(DType::f32, {blocks}, "absmax");
  const DequantizeNf4 op{{packed, absmax}, {device.tensor(dtype, {s.n, s.k}, "out")}};
  const double seconds = seconds_of(device, [&](gpu::Recorder& recorder) { record(recorder, op); });
  const double elements = double{1} * s.n * s.k;
  print_row("nf4", name_of(dtype).data(), s, 0, seconds, elements, elements * (0.5 + 4.0 / nf4_block + static_cast<double>(size_of(dtype))));
}

// One row, as generation has it: bound by the reading of the weight.
void run_row(gpu::Device& device, DType dtype, const Shape& s) {
  const Shape one{1, s.n, s.k};
  const Tensor y = device.tensor(DType::f32, {1, s.n}, "y");
  const auto row = [&](const char* name, const char* variant, double bytes, const auto& op) {
    const double seconds = seconds_of(device, [&](gpu::Recorder& recorder) { record(recorder, op); });
    print_row(name, variant, one, 0, seconds, 2.0 * s.n * s.k, bytes);
  };
  const Matrix x = make_matrix(device, 1, s.k, dtype, 1);
  const Weight weight{.data = device.tensor(dtype, {s.n, s.k}, "w")};
  const ProductPath path = dtype == DType::f16 ? ProductPath::f16 : ProductPath::f32;
  row("row", name_of(dtype).data(), static_cast<double>(weight.data.bytes()), ProductNT{path, operand_of(device, x), weight, y});
}

std::vector<Shape> shapes_of(const gpu::Device& device, int argc, char** argv) {
  std::vector<Shape> shapes;
  const auto number = [&](int i) { return static_cast<std::uint32_t>(std::strtoul(argv[i], nullptr, 10)); };
  for (int i = 1; i + 2 < argc; i += 3) shapes.push_back({number(i), number(i + 1), number(i + 2)});
  if (!shapes.empty()) return shapes;
  if (device.info().type == gpu::AdapterType::software) {
    return {{400, 384, 256}, {400, 128, 256}, {400, 256, 384}, {400, 768, 256}, {400, 256, 768}, {200, 4096, 256}};
  }
  return {{512, 9728, 2560}, {4096, 4096, 2560}, {4096, 9728, 2560}, {4096, 2560, 9728}, {8192, 9728, 2560}, {1024, 151936, 2560}};
}

void run(int argc, char** argv) {
  gpu::Device device;
  std::printf("%s\n", device.info().name.c_str());
  for (const Shape& shape : shapes_of(device, argc, argv)) {
    run_products(device, ProductPath::f32, "f32", shape);
    if (device.info().f16) run_products(device, ProductPath::f16, "f16", shape);
    if (device.info().f16 && !device.info().matrix_configs.empty()) {
      run_products(device, ProductPath::matrix, "matrix", shape);
    }
    const DType dtype = device.info().f16 ? DType::f16 : DType::f32;
    run_lora(device, dtype, shape, 16);
    run_dequantize(device, dtype, shape);
    run_row(device, dtype, shape);
  }
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) {
  try {
    nibble::bench::run(argc, argv);
  } catch (const nibble::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
