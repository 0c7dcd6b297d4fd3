// bench_lora [RANK [TOKENS...]]: the narrow products of LoRA over the projections of a Qwen3-4B layer, on matrix units
// and as they are done without. Gradients are compared first.

#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "nibble/kernels/lora.h"
#include "nibble/kernels/lora_matrix.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <span>
#include <string>
#include <utility>

namespace nibble::bench {
namespace {

constexpr float scaling = 2.0f;

struct Named {
  const char* name;
  std::uint32_t inputs;
  std::vector<std::uint32_t> outputs;
};

const Named layer_groups[] = {
    {"qkv", 2560, {4096, 1024, 1024}}, {"o", 4096, {2560}}, {"gate_up", 2560, {9728, 9728}}, {"down", 9728, {2560}}};

Tensor random(gpu::Device& device, std::initializer_list<std::uint32_t> dims, float amplitude) {
  std::uint64_t count = 1;
  for (const std::uint32_t dim : dims) count *= dim;
  Rng rng(count);
  std::vector<float> values(count);
  for (float& value : values) value = rng.uniform(-amplitude, amplitude);
  return device.tensor<float>(DType::f32, dims, values, "bench");
}

// Columns [first, first + columns) of a matrix of f16 values, whose rows are stretches of one long row.
Tensor pattern(gpu::Device& device, std::uint32_t rows, std::uint32_t first, std::uint32_t columns) {
  constexpr std::uint32_t period = 99991, step = 31337;
  Rng rng(1);
  std::vector<_Float16> line(period + first + columns), values(std::size_t{rows} * columns);
  for (std::size_t i = 0; i < line.size(); ++i) {
    line[i] = i < period ? static_cast<_Float16>(rng.uniform(-8000.0f, 8000.0f)) : line[i - period];
  }
  for (std::size_t row = 0; row < rows; ++row) {
    std::copy_n(line.begin() + static_cast<std::ptrdiff_t>(row * step % period + first), columns,
                values.begin() + static_cast<std::ptrdiff_t>(row * columns));
  }
  return device.tensor<_Float16>(DType::f16, {rows, columns}, values, "bench");
}

// One group's tensors. x and dy have several copies, so that repetitions do not find them in the cache.
struct Group {
  LoraGroupShape shape;
  std::uint32_t tokens, copies;
  std::vector<Tensor> a, b, da, db;
  LoraPack pack;
  Operand x, dy;
  Tensor h, dh, scratch, old_scratch;
  std::vector<Tensor> old_h, old_dh, old_da, old_db, old_dy;
  Tensor old_dy_scale;

  Operand copy(const Operand& all, std::uint32_t i) const {
    const std::uint32_t first = i % copies * tokens;
    return {all.data.rows(first, first + tokens), all.scale.rows(first, first + tokens)};
  }
};

Group make_group(gpu::Device& device, const LoraGroupShape& shape, std::uint32_t tokens) {
  Group g{.shape = shape, .tokens = tokens};
  g.copies = tokens % 64 == 0 ? std::clamp(16384 / tokens, 1u, 4u) : 1;
  const std::uint32_t rows = g.copies * tokens, rank = shape.rank;
  std::uint64_t old_scratch = 4, at = 0;
  std::uint32_t first = 0;
  LoraGroupMasters masters{.shape = shape};
  const auto count = static_cast<std::uint32_t>(shape.outputs.size());
  const Tensor flat = device.tensor(DType::f32, {2 * rank * (count * shape.inputs + shape.all_outputs())}, "bench");
  for (const std::uint32_t outputs : shape.outputs) {
    g.a.push_back(random(device, {rank, shape.inputs}, 0.02f));
    g.b.push_back(random(device, {outputs, rank}, 0.02f));
    masters.projections.push_back({g.a.back(), g.b.back(), scaling});
    for (auto* to : {&g.da, &g.old_da})
      to->push_back(flat.part(std::exchange(at, at + rank * shape.inputs), {rank, shape.inputs}));
    for (auto* to : {&g.db, &g.old_db})
      to->push_back(flat.part(std::exchange(at, at + rank * outputs), {outputs, rank}));
    for (auto* to : {&g.old_h, &g.old_dh}) to->push_back(device.tensor(DType::f32, {tokens, rank}, "bench"));
    g.old_dy.push_back(pattern(device, tokens, std::exchange(first, first + outputs), outputs));
    old_scratch = std::max(old_scratch, lora_scratch(device, tokens, outputs, shape.inputs, rank));
  }
  g.pack = make_lora_pack(device, std::span(&masters, 1));
  const auto operand = [&](std::uint32_t columns) {
    std::vector<float> scales(rows);
    for (std::uint32_t i = 0; i < rows; ++i) scales[i] = std::ldexp(1.0f, -10 - static_cast<int>(i % 7));
    return Operand{pattern(device, rows, 0, columns), device.tensor<float>(DType::f32, {rows}, scales, "bench")};
  };
  g.x = operand(shape.inputs);
  g.dy = operand(shape.all_outputs());
  for (auto* to : {&g.h, &g.dh}) *to = device.tensor(DType::f16, {tokens, shape.width()}, "bench");
  g.old_dy_scale = g.dy.scale.rows(0, tokens);
  g.scratch =
      device.tensor(DType::f32, {static_cast<std::uint32_t>(lora_matrix_scratch(device, shape, tokens))}, "bench");
  g.old_scratch = device.tensor(DType::f32, {static_cast<std::uint32_t>(old_scratch)}, "bench");
  return g;
}

void record_new(gpu::Recorder& recorder, const Group& g, std::uint32_t i) {
  const LoraGroup& group = g.pack.groups[0];
  const Operand x = g.copy(g.x, i), dy = g.copy(g.dy, i);
  LoraBackwardMatrix backward{
      .group = group, .x = x, .dy = dy, .h = g.h, .dh = g.dh, .scratch = g.scratch};
  for (std::size_t p = 0; p < g.da.size(); ++p) backward.da[p] = g.da[p], backward.db[p] = g.db[p];
  record(recorder, LoraDownMatrix{.group = group, .x = x.data, .h = g.h, .scratch = g.scratch});
  record(recorder, backward);
}

void record_old(gpu::Recorder& recorder, const Group& g, std::uint32_t i) {
  const Operand x = g.copy(g.x, i);
  for (std::size_t p = 0; p < g.da.size(); ++p) {
    const Operand dy{g.old_dy[p], g.old_dy_scale};
    record(recorder, LoraDown{.x = x, .a = g.a[p], .h = g.old_h[p]});
    record(recorder, LoraUpBackwardInput{.dy = dy, .b = g.b[p], .dh = g.old_dh[p], .scaling = scaling});
    record(recorder, LoraUpBackwardWeight{
                         .dy = dy, .h = g.old_h[p], .db = g.old_db[p], .scaling = scaling, .scratch = g.old_scratch});
    record(recorder, LoraDownBackwardWeight{.dh = g.old_dh[p], .x = x, .da = g.old_da[p], .scratch = g.old_scratch});
  }
}

// Gradients by both ways, which lose 2^-11 to each f16 rounding of four.
void verify(gpu::Device& device, const Group& g) {
  gpu::Recorder recorder(device);
  record(recorder, g.pack);
  record_new(recorder, g, 0);
  record_old(recorder, g, 0);
  recorder.submit();
  for (std::size_t p = 0; p < g.da.size(); ++p) {
    for (const auto& [left, right] : {std::pair{g.da[p], g.old_da[p]}, std::pair{g.db[p], g.old_db[p]}}) {
      const auto values = device.read<float>(left), expected = device.read<float>(right);
      double error = 0, norm = 0;
      for (std::size_t i = 0; i < values.size(); ++i) {
        error += std::pow(double{values[i]} - expected[i], 2);
        norm += std::pow(double{expected[i]}, 2);
      }
      check<DeviceError>(error < std::pow(2e-3, 2) * norm, "bench", "A gradient is off by {}.",
                         std::sqrt(error / norm));
    }
  }
}

using Recording = void (*)(gpu::Recorder&, const Group&, std::uint32_t);

// Milliseconds of each kernel in one recording, and of all of it by the wall clock.
void time(gpu::Device& device, const Group& g, Recording what) {
  constexpr int count = 24;
  const auto rows_of = [&] {
    std::map<std::string, gpu::ProfileRow> rows;
    for (const auto& row : device.profile()) rows[row.label] = row;
    return rows;
  };
  std::uint32_t turn = 0;
  const auto repeat = [&] {
    gpu::Recorder recorder(device);
    for (int i = 0; i < count; ++i) what(recorder, g, turn++);
    recorder.submit();
    device.wait("bench");
  };
  // A GPU lowers its clocks while tensors are made.
  const auto begin = std::chrono::steady_clock::now();
  do repeat();
  while (std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(300));
  const auto before = rows_of();
  repeat();
  double total = 0;
  for (const auto& [label, row] : rows_of()) {
    const auto first = before.find(label);
    if (first == before.end() || row.count == first->second.count) continue;
    const double seconds = row.seconds - first->second.seconds, bytes = row.bytes - first->second.bytes;
    const double flops = row.flops - first->second.flops;
    total += seconds;
    std::printf("    %-28s %2.0f a time %9.4f ms %8.0f GB/s %8.1f TFLOP/s\n", label.c_str(),
                static_cast<double>(row.count - first->second.count) / count, seconds / count * 1e3,
                bytes / seconds * 1e-9, flops / seconds * 1e-12);
  }
  std::printf("    %-38s %9.4f ms\n", "all", total / count * 1e3);
}

int run(int argc, char** argv) {
  gpu::Device device({.profile = true});
  const auto rank = static_cast<std::uint32_t>(argc > 1 ? std::atoi(argv[1]) : 16);
  std::vector<std::uint32_t> tokens;
  for (int i = 2; i < argc; ++i) tokens.push_back(static_cast<std::uint32_t>(std::atoi(argv[i])));
  if (tokens.empty()) tokens = {512};
  for (const std::uint32_t count : tokens) {
    for (const Named& named : layer_groups) {
      const LoraGroupShape shape{rank, named.inputs, named.outputs};
      const Group g = make_group(device, shape, count);
      const double x_bytes = 2.0 * count * shape.inputs, dy_bytes = 2.0 * count * shape.all_outputs();
      std::printf("%s, %u tokens, rank %u: x %.1f MB, dy %.1f MB\n  matrix units\n", named.name, count, rank,
                  x_bytes * 1e-6, dy_bytes * 1e-6);
      verify(device, g);
      time(device, g, record_new);
      std::printf("  vectors\n");
      time(device, g, record_old);
      std::fflush(stdout);
    }
  }
  return 0;
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) {
  try {
    return nibble::bench::run(argc, argv);
  } catch (const nibble::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
