// bench_attention [TOKENS SEGMENT HEADS KEY_HEADS HEAD_DIM]: attention forward and backward of one layer, and what
// turns projections into its inputs, by default of the shipped tiny model on a software adapter and of Qwen3-4B on a GPU.
// Sampled outputs are verified, then each kernel is timed.

#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "nibble/kernels/attention.h"
#include "nibble/kernels/qk_norm_rope.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>

namespace nibble::bench {
namespace {

struct Shape {
  std::uint32_t tokens, segment, heads, key_heads, head_dim;
};

struct Layer {
  std::vector<float> q_values, k_values, v_values;
  QkNormRope make_q, make_k;
  ToHeads make_v;
  Attention forward;
  AttentionBackward backward;
  QkNormRopeBackward back_q;
  AttentionRoom room;  // for attention on matrix units; empty where there are none
};

// Makes the layer's tensors.
struct Maker {
  gpu::Device& device;
  const Shape& shape;
  Rng rng{1};

  Tensor random(std::initializer_list<std::uint32_t> dims, std::vector<float>* keep = nullptr) {
    std::vector<float> values(std::accumulate(dims.begin(), dims.end(), std::size_t{1}, std::multiplies<>()));
    for (float& value : values) value = rng.uniform(-1.0f, 1.0f);
    const Tensor tensor = device.tensor<float>(DType::f32, dims, values, "bench");
    if (keep) *keep = std::move(values);
    return tensor;
  }
  Tensor empty(std::initializer_list<std::uint32_t> dims) { return device.tensor(DType::f32, dims, "bench"); }
  Tensor indices(std::uint32_t (*of)(const Shape&, std::uint32_t)) {
    std::vector<std::uint32_t> values(shape.tokens);
    for (std::uint32_t i = 0; i < shape.tokens; ++i) values[i] = of(shape, i);
    return device.tensor<std::uint32_t>(DType::u32, {shape.tokens}, values, "bench");
  }
};

void make_attention(Maker& make, Layer& layer) {
  const auto [tokens, segment, heads, key_heads, dim] = make.shape;
  layer.forward = {
      .q = make.random({heads, tokens, dim}, &layer.q_values),
      .k = make.random({key_heads, tokens, dim}, &layer.k_values),
      .v = make.random({key_heads, tokens, dim}, &layer.v_values),
      .key_begin = make.indices([](const Shape& s, std::uint32_t i) { return i / s.segment * s.segment; }),
      .key_end = make.indices([](const Shape&, std::uint32_t i) { return i + 1; }),
      .o = make.empty({tokens, heads * dim}),
      .lse = make.empty({heads, tokens}),
      .pairs = std::uint64_t{tokens} * (segment + 1) / 2,
  };
  const Attention& f = layer.forward;
  layer.backward = {
      .q = f.q,
      .k = f.k,
      .v = f.v,
      .key_begin = f.key_begin,
      .key_end = f.key_end,
      .query_end = make.indices(
          [](const Shape& s, std::uint32_t i) { return std::min(s.tokens, i / s.segment * s.segment + s.segment); }),
      .o = f.o,
      .d_o = make.random({tokens, heads * dim}),
      .lse = f.lse,
      .delta = make.empty({heads, tokens}),
      .dq = make.empty({heads, tokens, dim}),
      .dk = make.empty({key_heads, tokens, dim}),
      .dv = make.empty({key_heads, tokens, dim}),
      .pairs = f.pairs,
  };
}

void make_inputs(Maker& make, Layer& layer) {
  const auto [tokens, segment, heads, key_heads, dim] = make.shape;
  const auto table = rope_table(tokens, dim, 1e6);
  layer.make_q = {.x = make.random({tokens, heads * dim}),
                  .weight = make.random({dim}),
                  .position = make.indices([](const Shape& s, std::uint32_t i) { return i % s.segment; }),
                  .table = make.device.tensor<float>(DType::f32, {tokens, dim / 2, 2}, table, "bench"),
                  .y = make.empty({heads, tokens, dim}),
                  .inv_rms = make.empty({tokens, heads})};
  layer.make_v = {.x = make.random({tokens, key_heads * dim}), .y = make.empty({key_heads, tokens, dim})};
  const QkNormRope& q = layer.make_q;
  layer.back_q = {.dy = layer.backward.dq,
                  .x = q.x,
                  .weight = q.weight,
                  .position = q.position,
                  .table = q.table,
                  .inv_rms = q.inv_rms,
                  .dx = make.empty({tokens, heads * dim})};
}

// By the usual variant, or on matrix units.
void record_attention(gpu::Recorder& recorder, const Layer& layer, bool matrix) {
  Attention forward = layer.forward;
  AttentionBackward backward = layer.backward;
  if (matrix) forward.room = backward.room = layer.room;
  record(recorder, forward);
  record(recorder, backward);
}

void record_all(gpu::Recorder& recorder, const Layer& layer) {
  record(recorder, layer.make_q);
  record(recorder, layer.make_v);
  record_attention(recorder, layer, false);
  if (layer.room.operands) record_attention(recorder, layer, true);
  record(recorder, layer.back_q);
}

// The largest error of o over some queries and heads.
double sampled_error(gpu::Device& device, const Shape& shape, const Layer& layer) {
  const auto o = device.read<float>(layer.forward.o);
  const std::uint32_t dim = shape.head_dim;
  double worst = 0;
  for (std::uint32_t sample = 0; sample < 16; ++sample) {
    const std::uint32_t query = sample * (shape.tokens - 1) / 15, head = sample % shape.heads;
    const std::uint32_t key_head = head / (shape.heads / shape.key_heads);
    std::vector<double> sum(dim);
    double total = 0;
    for (std::uint32_t key = query / shape.segment * shape.segment; key <= query; ++key) {
      const float* q = &layer.q_values[(std::size_t{head} * shape.tokens + query) * dim];
      const float* k = &layer.k_values[(std::size_t{key_head} * shape.tokens + key) * dim];
      const float* v = &layer.v_values[(std::size_t{key_head} * shape.tokens + key) * dim];
      const double weight = std::exp(std::inner_product(q, q + dim, k, 0.0) / std::sqrt(static_cast<double>(dim)));
      total += weight;
      for (std::uint32_t d = 0; d < dim; ++d) sum[d] += weight * v[d];
    }
    const float* row = &o[(std::size_t{query} * shape.heads + head) * dim];
    for (std::uint32_t d = 0; d < dim; ++d) worst = std::max(worst, std::fabs(row[d] - sum[d] / total));
  }
  return worst;
}

double relative_error(const std::vector<float>& values, const std::vector<float>& expected) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    error += std::pow(static_cast<double>(values[i]) - expected[i], 2);
    norm += std::pow(static_cast<double>(expected[i]), 2);
  }
  return std::sqrt(error / norm);
}

// Results by matrix units against those of the usual variant: f16 operands lose 2^-11 each, and a gradient has four.
void verify_matrix(gpu::Device& device, const Layer& layer) {
  const AttentionBackward& b = layer.backward;
  const Tensor outputs[] = {layer.forward.o, b.dq, b.dk, b.dv};
  const auto results = [&](bool matrix) {
    gpu::Recorder recorder(device);
    record_attention(recorder, layer, matrix);
    recorder.submit();
    std::vector<std::vector<float>> values;
    for (const Tensor& output : outputs) values.push_back(device.read<float>(output));
    return values;
  };
  const auto expected = results(false), values = results(true);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double error = relative_error(values[i], expected[i]);
    std::printf("matrix against tiles, output %zu: %.1e\n", i, error);
    check<DeviceError>(error < 2e-3, "bench", "Output {} by matrix units is off by {}.", i, error);
  }
}

int run(int argc, char** argv) {
  gpu::Device device({.profile = true});
  const bool software = device.info().type == gpu::AdapterType::software;
  Shape shape = software ? Shape{800, 50, 6, 2, 64} : Shape{8192, 1024, 32, 8, 128};
  std::uint32_t* const fields[] = {&shape.tokens, &shape.segment, &shape.heads, &shape.key_heads, &shape.head_dim};
  for (int i = 1; i < argc && i <= 5; ++i) *fields[i - 1] = static_cast<std::uint32_t>(std::atoi(argv[i]));
  std::printf("%s: %u tokens in segments of %u, %u heads on %u of %u\n", device.info().name.c_str(), shape.tokens,
              shape.segment, shape.heads, shape.key_heads, shape.head_dim);
  Layer layer;
  Maker make{device, shape};
  make_attention(make, layer);
  make_inputs(make, layer);
  layer.room = make_attention_room(device, {.tokens = shape.tokens, .heads = shape.heads,
                                                                 .key_heads = shape.key_heads, .head_dim = shape.head_dim});
  gpu::Recorder recorder(device);
  record_all(recorder, layer);
  record_attention(recorder, layer, false);
  recorder.submit();
  const double error = sampled_error(device, shape, layer);
  check<DeviceError>(error < 1e-4, "bench", "An output is off by {}.", error);
  if (layer.room.operands) verify_matrix(device, layer);
  const auto before = device.profile();
  for (int i = 0; i < 30; ++i) record_all(recorder, layer);
  recorder.submit();
  device.wait("bench");
  for (const auto& row : device.profile()) {
    const auto first = std::find_if(before.begin(), before.end(), [&](const auto& r) { return r.label == row.label; });
    const double seconds = (row.seconds - first->seconds) / static_cast<double>(row.count - first->count);
    std::printf("%-34s %9.3f ms %9.1f GB/s %9.1f GFLOP/s\n", row.label.c_str(), seconds * 1e3,
                row.bytes / static_cast<double>(row.count) / seconds * 1e-9,
                row.flops / static_cast<double>(row.count) / seconds * 1e-9);
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
