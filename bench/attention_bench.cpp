// bench_attention [TOKENS SEGMENT HEADS KEY_HEADS HEAD_DIM]: what lies between the joint projection of queries, keys and
// values and attention's output, forward and backward, by default of the shipped tiny model on a software adapter and of
// Qwen3-4B on a GPU. Sampled outputs are verified, on matrix units gradients too, then each kernel is timed.

#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "nibble/kernels/pack_rows.h"
#include "nibble/kernels/qk_norm_rope.h"
#include "nibble/kernels/qkv_attention.h"
#include "nibble/kernels/unpack_rows.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>

namespace nibble::bench {
namespace {

struct Shape {
  std::uint32_t tokens, segment, heads, key_heads, head_dim;

  std::uint32_t queries() const { return heads * head_dim; }
  std::uint32_t row() const { return (heads + 2 * key_heads) * head_dim; }
};

// Makes the layer's tensors.
struct Maker {
  gpu::Device& device;
  const Shape& shape;
  ProductPath path;
  Rng rng{1};

  // Uniform in [-1, 1).
  Operand random(std::uint32_t columns) {
    std::vector<float> values(std::size_t{shape.tokens} * columns);
    for (float& value : values) value = rng.uniform(-1.0f, 1.0f);
    const Tensor x = device.tensor<float>(DType::f32, {shape.tokens, columns}, values, "bench");
    if (path == ProductPath::f32) return {x, {}};
    gpu::Recorder recorder(device);
    return as_operand(recorder, x, make_operand(device, path, shape.tokens, columns, "bench"));
  }
  Tensor ones() {
    return device.tensor<float>(DType::f32, {shape.head_dim}, std::vector<float>(shape.head_dim, 1.0f), "bench");
  }
  Tensor indices(std::uint32_t (*of)(const Shape&, std::uint32_t)) {
    std::vector<std::uint32_t> values(shape.tokens);
    for (std::uint32_t i = 0; i < shape.tokens; ++i) values[i] = of(shape, i);
    return device.tensor<std::uint32_t>(DType::u32, {shape.tokens}, values, "bench");
  }
};

std::uint32_t segment_begin(const Shape& s, std::uint32_t i) { return i / s.segment * s.segment; }

QkvAttentionBackward make_layer(Maker& make) {
  const Shape& s = make.shape;
  auto& device = make.device;
  const QkvAttentionShape room{.tokens = s.tokens, .heads = s.heads, .key_heads = s.key_heads, .head_dim = s.head_dim,
                               .path = make.path};
  const auto table = rope_table(s.tokens, s.head_dim, 1e6);
  return {.forward = {.qkv = make.random(s.row()),
                      .heads = s.heads,
                      .key_heads = s.key_heads,
                      .q_norm = make.ones(),
                      .k_norm = make.ones(),
                      .position = make.indices([](const Shape& x, std::uint32_t i) { return i % x.segment; }),
                      .table = device.tensor<float>(DType::f32, {s.tokens, s.head_dim / 2, 2}, table, "bench"),
                      .key_begin = make.indices(segment_begin),
                      .key_end = make.indices([](const Shape&, std::uint32_t i) { return i + 1; }),
                      .pairs = std::uint64_t{s.tokens} * (s.segment + 1) / 2,
                      .o = make_operand(device, make.path, s.tokens, s.queries(), "bench"),
                      .lse = device.tensor(DType::f32, {s.heads, s.tokens}, "bench"),
                      .room = make_qkv_attention_room(device, room)},
          .query_end = make.indices([](const Shape& x, std::uint32_t i) {
            return std::min(x.tokens, segment_begin(x, i) + x.segment);
          }),
          .d_o = make.random(s.queries()),
          .d_qkv = make_operand(device, make.path, s.tokens, s.row(), "bench")};
}

std::vector<float> values_of(gpu::Device& device, const Operand& operand) {
  if (!operand.scale) return device.read<float>(operand.data);
  const Tensor y = device.tensor(DType::f32, {operand.data.dim(0), operand.data.dim(1)}, "bench");
  gpu::Recorder recorder(device);
  record(recorder, UnpackRows{.x = operand, .y = y});
  recorder.submit();
  return device.read<float>(y);
}

// A head of a token: normed, and rotated by the position.
std::vector<double> rotated(const Shape& s, const std::vector<float>& qkv, std::uint32_t token, std::uint32_t head) {
  static const auto frequencies = rope_frequencies(s.head_dim, 1e6);
  const float* row = &qkv[std::size_t{token} * s.row() + std::size_t{head} * s.head_dim];
  std::vector<double> x(row, row + s.head_dim);
  const double squares = std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
  for (double& value : x) value /= std::sqrt(squares / s.head_dim + 1e-6);
  for (std::uint32_t i = 0, half = s.head_dim / 2; i < half; ++i) {
    const double angle = double{static_cast<float>(token % s.segment) * frequencies[i]}, low = x[i], high = x[i + half];
    x[i] = low * std::cos(angle) - high * std::sin(angle);
    x[i + half] = high * std::cos(angle) + low * std::sin(angle);
  }
  return x;
}

// The largest error of o over some queries and heads.
double sampled_error(gpu::Device& device, const Shape& s, const QkvAttention& layer) {
  const auto o = values_of(device, layer.o), qkv = values_of(device, layer.qkv);
  double worst = 0;
  for (std::uint32_t sample = 0; sample < 16; ++sample) {
    const std::uint32_t query = sample * (s.tokens - 1) / 15, head = sample % s.heads;
    const std::uint32_t key_head = head / (s.heads / s.key_heads);
    const auto q = rotated(s, qkv, query, head);
    std::vector<double> sum(s.head_dim);
    double total = 0;
    for (std::uint32_t key = segment_begin(s, query); key <= query; ++key) {
      const auto k = rotated(s, qkv, key, s.heads + key_head);
      const double weight = std::exp(std::inner_product(q.begin(), q.end(), k.begin(), 0.0) / std::sqrt(s.head_dim));
      const float* v = &qkv[std::size_t{key} * s.row() + std::size_t{s.heads + s.key_heads + key_head} * s.head_dim];
      total += weight;
      for (std::uint32_t d = 0; d < s.head_dim; ++d) sum[d] += weight * v[d];
    }
    const float* row = &o[(std::size_t{query} * s.heads + head) * s.head_dim];
    for (std::uint32_t d = 0; d < s.head_dim; ++d) worst = std::max(worst, std::fabs(row[d] - sum[d] / total));
  }
  return worst;
}

void record_all(gpu::Recorder& recorder, const QkvAttentionBackward& layer) {
  record(recorder, layer.forward);
  record(recorder, layer);
}

// Gradients by matrix units against those in f32: f16 operands lose 2^-11 each, and a gradient has four.
void verify_gradients(gpu::Device& device, const Shape& s, const QkvAttentionBackward& layer) {
  const auto values = values_of(device, layer.d_qkv);
  QkvAttentionBackward plain = layer;
  plain.forward.room = make_qkv_attention_room(device, {.tokens = s.tokens, .heads = s.heads, .key_heads = s.key_heads,
                                                        .head_dim = s.head_dim, .path = ProductPath::matrix, .packed = false});
  gpu::Recorder recorder(device);
  record_all(recorder, plain);
  recorder.submit();
  const auto expected = values_of(device, layer.d_qkv);
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    error += std::pow(double{values[i]} - double{expected[i]}, 2);
    norm += std::pow(double{expected[i]}, 2);
  }
  error = std::sqrt(error / norm);
  std::printf("gradients on matrix units against f32: %.1e\n", error);
  check<DeviceError>(error < 2e-3, "bench", "Gradients by matrix units are off by {}.", error);
}

void time_kernels(gpu::Device& device, const QkvAttentionBackward& layer) {
  const auto run = [&](int count) {
    gpu::Recorder recorder(device);
    for (int i = 0; i < count; ++i) record_all(recorder, layer);
    recorder.submit();
    device.wait("bench");
  };
  const bool software = device.info().type == gpu::AdapterType::software;
  run(software ? 2 : 100);  // a GPU lowers its clocks while a kernel is compiled
  const auto before = device.profile();
  run(software ? 10 : 50);
  for (const auto& row : device.profile()) {
    const auto first = std::find_if(before.begin(), before.end(), [&](const auto& r) { return r.label == row.label; });
    const double count = static_cast<double>(row.count - first->count);
    const double seconds = (row.seconds - first->seconds) / count;
    if (count == 0) continue;
    std::printf("%-34s %9.3f ms %9.1f GB/s %9.1f GFLOP/s\n", row.label.c_str(), seconds * 1e3,
                (row.bytes - first->bytes) / count / seconds * 1e-9, (row.flops - first->flops) / count / seconds * 1e-9);
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
  Maker make{device, shape, software ? ProductPath::f32 : ProductPath::matrix};
  const QkvAttentionBackward layer = make_layer(make);
  {
    gpu::Recorder recorder(device);
    record_all(recorder, layer);
    recorder.submit();
  }
  const double error = sampled_error(device, shape, layer.forward);
  std::printf("largest error of an output: %.1e\n", error);
  check<DeviceError>(error < (software ? 1e-4 : 2e-3), "bench", "An output is off by {}.", error);
  if (layer.forward.room.packed) verify_gradients(device, shape, layer);
  time_kernels(device, layer);
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
