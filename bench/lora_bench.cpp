// bench_lora [RANK [TOKENS...]]: the narrow products of LoRA over the projections of a Qwen3-4B layer, on matrix units
// and as they are done without. Results are compared first.

#include "bench/timing.h"
#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "nibble/kernels/lora.h"
#include "nibble/kernels/lora_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <utility>

namespace nibble::bench {
namespace {

struct Named {
  const char* name;
  std::uint32_t inputs;
  std::vector<std::uint32_t> outputs;
};

const Named layer_groups[] = {
    {"qkv", 2560, {4096, 1024, 1024}}, {"o", 4096, {2560}}, {"gate_up", 2560, {9728, 9728}}, {"down", 9728, {2560}}};

Tensor random(gpu::Device& device, std::initializer_list<std::uint32_t> dims, float amplitude, DType dtype) {
  std::uint64_t count = 1;
  for (const std::uint32_t dim : dims) count *= dim;
  Rng rng(count);
  if (dtype == DType::f32) {
    std::vector<float> values(count);
    for (float& value : values) value = rng.uniform(-amplitude, amplitude);
    return device.tensor<float>(dtype, dims, values, "bench");
  }
  // A block of values again and again.
  std::vector<_Float16> values(count);
  for (std::size_t i = 0; i < count; ++i)
    values[i] = i < 99991 ? static_cast<_Float16>(rng.uniform(-amplitude, amplitude)) : values[i - 99991];
  return device.tensor<_Float16>(dtype, dims, values, "bench");
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
  g.copies = std::clamp(16384 / tokens, 1u, 4u);
  const std::uint32_t rows = g.copies * tokens, rank = shape.rank;
  std::uint64_t old_scratch = 4, at = 0;
  const auto count = static_cast<std::uint32_t>(shape.outputs.size());
  const Tensor flat = device.tensor(DType::f32, {2 * rank * (count * shape.inputs + shape.all_outputs())}, "bench");
  for (const std::uint32_t outputs : shape.outputs) {
    g.a.push_back(random(device, {rank, shape.inputs}, 0.02f, DType::f32));
    g.b.push_back(random(device, {outputs, rank}, 0.02f, DType::f32));
    for (auto* to : {&g.da, &g.old_da})
      to->push_back(flat.part(std::exchange(at, at + rank * shape.inputs), {rank, shape.inputs}));
    for (auto* to : {&g.db, &g.old_db})
      to->push_back(flat.part(std::exchange(at, at + rank * outputs), {outputs, rank}));
    for (auto* to : {&g.old_h, &g.old_dh}) to->push_back(device.tensor(DType::f32, {tokens, rank}, "bench"));
    g.old_dy.push_back(random(device, {tokens, outputs}, 8000.0f, DType::f16));
    old_scratch = std::max(old_scratch, lora_scratch(device, tokens, outputs, shape.inputs, rank));
  }
  g.pack.groups.push_back({.shape = shape, .adapted = {true, true, true}});
  g.pack.groups[0].a = random(device, {shape.width(), shape.inputs}, 1.28f, DType::f16);
  g.pack.groups[0].b = random(device, {shape.all_outputs(), shape.padded_rank()}, 1.28f, DType::f16);
  const auto operand = [&](std::uint32_t columns) {
    std::vector<float> scales(rows);
    for (std::uint32_t i = 0; i < rows; ++i) scales[i] = std::ldexp(1.0f, -10 - static_cast<int>(i % 7));
    return Operand{random(device, {rows, columns}, 8000.0f, DType::f16),
                   device.tensor<float>(DType::f32, {rows}, scales, "bench")};
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
      .group = group, .x = x, .dy = dy, .h = g.h, .dh = g.dh, .scaling = 2.0f, .scratch = g.scratch};
  for (std::size_t p = 0; p < g.da.size(); ++p) backward.da[p] = g.da[p], backward.db[p] = g.db[p];
  record(recorder, LoraDownMatrix{.group = group, .x = x.data, .h = g.h, .scratch = g.scratch});
  record(recorder, backward);
}

void record_old(gpu::Recorder& recorder, const Group& g, std::uint32_t i) {
  const Operand x = g.copy(g.x, i);
  for (std::size_t p = 0; p < g.da.size(); ++p) {
    const Operand dy{g.old_dy[p], g.old_dy_scale};
    record(recorder, LoraDown{.x = x, .a = g.a[p], .h = g.old_h[p]});
    record(recorder, LoraUpBackwardInput{.dy = dy, .b = g.b[p], .dh = g.old_dh[p], .scaling = 2.0f});
    record(recorder, LoraUpBackwardWeight{
                         .dy = dy, .h = g.old_h[p], .db = g.old_db[p], .scaling = 2.0f, .scratch = g.old_scratch});
    record(recorder, LoraDownBackwardWeight{.dh = g.old_dh[p], .x = x, .da = g.old_da[p], .scratch = g.old_scratch});
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
  repeat();
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

double total_seconds(gpu::Device& device, const Group& g, Recording what) {
  std::uint32_t turn = 0;
  return seconds_of(device, [&](gpu::Recorder& recorder) { what(recorder, g, turn++); });
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
      if (&named == layer_groups) total_seconds(device, g, record_new);
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
