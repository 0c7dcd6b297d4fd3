#include "nibble/base/error.h"
#include "nibble/base/relative_error.h"
#include "nibble/cli/bench.h"
#include "nibble/kernels/pack_rows.h"
#include "nibble/kernels/packed_attention.h"
#include "nibble/kernels/qk_norm_rope.h"
#include "nibble/kernels/qkv_attention.h"
#include "nibble/kernels/random_fill.h"
#include "nibble/kernels/unpack_rows.h"
#include "nibble/model/rope.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace nibble::cli {
namespace {

struct AttentionFlags {
  BenchFlags bench;
  ShapeFlags shape;
  std::vector<std::uint32_t> batch = {1}, length = {512};
  std::uint32_t repeats = 5;
};

// Segments of one length, and the model's heads.
struct Sizes {
  std::uint32_t batch, length, heads, key_heads, head_dim;
  ProductPath path;
  bool packed;
  std::vector<float> frequencies;  // of the rotation
  float eps;

  Sizes(gpu::Device& device, const ModelConfig& config, ProductPath chosen, std::uint32_t segments, std::uint32_t each)
      : batch(segments),
        length(each),
        heads(config.num_heads),
        key_heads(config.num_kv_heads),
        head_dim(config.head_dim),
        path(chosen),
        packed(chosen == ProductPath::matrix && packed_attention_fits(device, {tokens(), heads, key_heads, head_dim})),
        frequencies(rope_frequencies(config.rope, config.head_dim)),
        eps(config.rms_norm_eps) {}
  std::uint32_t tokens() const { return batch * length; }
  std::uint32_t queries() const { return heads * head_dim; }
  std::uint32_t row() const { return (heads + 2 * key_heads) * head_dim; }
  std::uint64_t pairs() const { return std::uint64_t{batch} * length * (length + 1) / 2; }
  QkvAttentionShape room(ProductPath of, bool on_matrix_units) const {
    return {.tokens = tokens(), .heads = heads, .key_heads = key_heads, .head_dim = head_dim, .path = of,
            .packed = on_matrix_units};
  }
  std::string_view how() const { return packed ? "matrix units" : "f32"; }

  // The relative errors (2-norm) that are allowed, with the reasons of docs/numerics.md: f16 operands are off by 2^-11 of
  // themselves, o is made of two of them, and a gradient of two more; sums in f32 lose what tests/kernels/attention_test.cpp
  // allows.
  double bar_of_o() const {
    return path == ProductPath::f32 ? (2 * head_dim * std::sqrt(head_dim) / 4 + 64) * 0x1p-24 : 0x1p-10;
  }
  double bar_of_gradient() const { return path == ProductPath::f32 ? 8 * bar_of_o() : 0x1p-9; }
};

Operand random_operand(gpu::Device& device, const Sizes& s, std::uint32_t columns, std::uint32_t seed) {
  const Tensor x = device.tensor(DType::f32, {s.tokens(), columns}, "bench");
  gpu::Recorder recorder(device);
  record(recorder, RandomFill{.x = x, .seed = seed});
  if (s.path == ProductPath::f32) return {x, {}};
  return as_operand(recorder, x, make_operand(device, s.path, s.tokens(), columns, "bench"));
}

Tensor indices(gpu::Device& device, const Sizes& s, const std::function<std::uint32_t(std::uint32_t)>& of) {
  std::vector<std::uint32_t> values(s.tokens());
  for (std::uint32_t i = 0; i < s.tokens(); ++i) values[i] = of(i);
  return device.tensor<std::uint32_t>(DType::u32, {s.tokens()}, values, "bench");
}

std::uint32_t segment_begin(const Sizes& s, std::uint32_t token) { return token / s.length * s.length; }

QkvAttentionBackward make_layer(gpu::Device& device, const Sizes& s) {
  const Tensor ones = device.tensor<float>(DType::f32, {s.head_dim}, std::vector<float>(s.head_dim, 1.0f), "bench");
  return {.forward = {.qkv = random_operand(device, s, s.row(), 1),
                      .heads = s.heads,
                      .key_heads = s.key_heads,
                      .q_norm = ones,
                      .k_norm = ones,
                      .position = indices(device, s, [&](std::uint32_t i) { return i % s.length; }),
                      .table = device.tensor<float>(DType::f32, {s.length, s.head_dim / 2, 2},
                                                    rope_table(s.length, s.frequencies), "bench"),
                      .eps = s.eps,
                      .key_begin = indices(device, s, [&](std::uint32_t i) { return segment_begin(s, i); }),
                      .key_end = indices(device, s, [](std::uint32_t i) { return i + 1; }),
                      .pairs = s.pairs(),
                      .o = make_operand(device, s.path, s.tokens(), s.queries(), "bench"),
                      .lse = device.tensor(DType::f32, {s.heads, s.tokens()}, "bench"),
                      .room = make_qkv_attention_room(device, s.room(s.path, s.packed))},
          .query_end = indices(device, s, [&](std::uint32_t i) { return segment_begin(s, i) + s.length; }),
          .d_o = random_operand(device, s, s.queries(), 2),
          .d_qkv = make_operand(device, s.path, s.tokens(), s.row(), "bench")};
}

Operand unpacked(gpu::Device& device, const Operand& operand) {
  if (!operand.scale) return operand;
  const Tensor y = device.tensor(DType::f32, {operand.data.dim(0), operand.data.dim(1)}, "bench");
  gpu::Recorder recorder(device);
  record(recorder, UnpackRows{.x = operand, .y = y});
  return {y, {}};
}

std::vector<float> values_of(gpu::Device& device, const Operand& operand) {
  return device.read<float>(unpacked(device, operand).data);
}

// The same in f32, by heads, on the values that the operands hold.
QkvAttentionBackward in_f32(gpu::Device& device, const Sizes& s, const QkvAttentionBackward& layer) {
  QkvAttentionBackward plain = layer;
  plain.forward.qkv = unpacked(device, layer.forward.qkv);
  plain.forward.o = make_operand(device, ProductPath::f32, s.tokens(), s.queries(), "bench");
  plain.forward.lse = device.tensor(DType::f32, {s.heads, s.tokens()}, "bench");
  plain.forward.room = make_qkv_attention_room(device, s.room(ProductPath::f32, false));
  plain.d_o = unpacked(device, layer.d_o);
  plain.d_qkv = make_operand(device, ProductPath::f32, s.tokens(), s.row(), "bench");
  return plain;
}

// A head of a token: normed, and rotated by the position.
std::vector<double> rotated(const Sizes& s, std::span<const float> qkv, std::uint32_t token, std::uint32_t head) {
  const auto row = qkv.subspan(std::size_t{token} * s.row() + std::size_t{head} * s.head_dim, s.head_dim);
  std::vector<double> x(row.begin(), row.end());
  const double squares = std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
  for (double& value : x) value /= std::sqrt(squares / s.head_dim + double{s.eps});
  for (std::uint32_t i = 0, half = s.head_dim / 2; i < half; ++i) {
    const double angle = double{static_cast<float>(token % s.length) * s.frequencies[i]}, low = x[i], high = x[i + half];
    x[i] = low * std::cos(angle) - high * std::sin(angle);
    x[i + half] = high * std::cos(angle) + low * std::sin(angle);
  }
  return x;
}

// The error of o over some queries and heads, against double on the host, which shares no kernel with either form.
double sampled_error(const Sizes& s, std::span<const float> qkv, std::span<const float> o) {
  constexpr std::uint32_t samples = 16;
  std::vector<float> got, expected;
  for (std::uint32_t sample = 0; sample < samples; ++sample) {
    const auto query = static_cast<std::uint32_t>(std::uint64_t{sample} * (s.tokens() - 1) / (samples - 1));
    const std::uint32_t head = sample % s.heads, key_head = head / (s.heads / s.key_heads);
    const auto q = rotated(s, qkv, query, head);
    std::vector<double> sum(s.head_dim);
    double total = 0;
    for (std::uint32_t key = segment_begin(s, query); key <= query; ++key) {
      const auto k = rotated(s, qkv, key, s.heads + key_head);
      const double weight = std::exp(std::inner_product(q.begin(), q.end(), k.begin(), 0.0) / std::sqrt(s.head_dim));
      const float* v = &qkv[std::size_t{key} * s.row() + std::size_t{s.heads + s.key_heads + key_head} * s.head_dim];
      total += weight;
      for (std::uint32_t d = 0; d < s.head_dim; ++d) sum[d] += weight * double{v[d]};
    }
    const auto row = o.subspan((std::size_t{query} * s.heads + head) * s.head_dim, s.head_dim);
    got.insert(got.end(), row.begin(), row.end());
    for (const double value : sum) expected.push_back(static_cast<float>(value / total));
  }
  return relative_error(got, expected);
}

struct Errors {
  double o = 0, d_qkv = 0, sampled = 0;

  // Not where one is NaN.
  bool passed(const Sizes& s) const {
    return o <= s.bar_of_o() && sampled <= s.bar_of_o() && d_qkv <= s.bar_of_gradient();
  }
};

Errors verify(gpu::Device& device, const Sizes& s, const QkvAttentionBackward& layer) {
  const QkvAttentionBackward plain = in_f32(device, s, layer);
  for (const QkvAttentionBackward* each : {&layer, &plain}) {
    gpu::Recorder recorder(device);
    record(recorder, each->forward);
    record(recorder, *each);
  }
  const auto o = values_of(device, layer.forward.o);
  return {.o = relative_error(o, device.read<float>(plain.forward.o.data)),
          .d_qkv = relative_error(values_of(device, layer.d_qkv), device.read<float>(plain.d_qkv.data)),
          .sampled = sampled_error(s, device.read<float>(plain.forward.qkv.data), o)};
}

double bytes_of(const Operand& operand) {
  return static_cast<double>(operand.data.bytes() + (operand.scale ? operand.scale.bytes() : 0));
}

// Two products forward and five backward, of a pair's head dimension each. What must move at least: inputs and results.
Json timed(gpu::Device& device, const AttentionFlags& flags, const Sizes& s, const QkvAttentionBackward& layer, bool backward,
           const Peaks& peaks) {
  const double flops = (backward ? 10.0 : 4.0) * static_cast<double>(s.pairs()) * s.queries();
  const double read = bytes_of(layer.forward.qkv) + bytes_of(layer.forward.o) + static_cast<double>(layer.forward.lse.bytes());
  const double bytes = backward ? read + bytes_of(layer.d_o) + bytes_of(layer.d_qkv) : read;
  const Spread seconds = measure(device, flags.repeats, [&](gpu::Recorder& recorder) {
    if (backward) return record(recorder, layer);
    record(recorder, layer.forward);
  });
  Json row = Json::object();
  put_rates(row, seconds, flops, bytes, peaks);
  return row;
}

void print_head(std::FILE* out, const AttentionFlags& flags, const ModelConfig& config) {
  fmt::print(out, "{}: {} heads on {} of {}\n", flags.shape.label(), config.num_heads, config.num_kv_heads, config.head_dim);
  fmt::print(out, "{:>12} {:>12} {:>10} {:>8} {:>8} {:>11} {:>8} {:>8} {:>8} {:>8} {:>8}\n", "batch x len", "by", "forward ms",
             "TFLOP/s", "of peak", "backward ms", "TFLOP/s", "of peak", "o", "d_qkv", "");
}

void print_row(std::FILE* out, const Sizes& s, const Json& row, bool passed) {
  fmt::print(out, "{:>12} {:>12}", fmt::format("{} x {}", s.batch, s.length), s.how());
  for (const char* pass : {"forward", "backward"}) {
    const Json& of = row[pass];
    const Json& share = of["share_of_peak"];
    fmt::print(out, " {:>{}.3f} {:>8.1f} {:>8}", of["seconds"]["median"].get<double>() * 1e3, pass[0] == 'f' ? 10 : 11,
               of["tflops"].get<double>(), share.is_null() ? "?" : fmt::format("{:.1f}%", 100 * share.get<double>()));
  }
  const Json& errors = row["errors"];
  fmt::print(out, " {:>8.1e} {:>8.1e} {:>8}\n", errors["o"].get<double>(), errors["d_qkv"].get<double>(), passed ? "ok" : "WRONG");
  std::fflush(out);
}

// Of the i-th row; the last value of a shorter list serves the rest.
Sizes sizes_of_row(std::size_t i, const AttentionFlags& flags, gpu::Device& device, const ModelConfig& config, ProductPath path) {
  const std::uint32_t batch = flags.batch[std::min(i, flags.batch.size() - 1)];
  const std::uint32_t length = flags.length[std::min(i, flags.length.size() - 1)];
  constexpr std::uint64_t most_tokens = std::uint64_t{1} << 22;
  check<UsageError>(std::uint64_t{batch} * length <= most_tokens, "--length", "{} segments of {} tokens were asked for; "
                    "at most {} tokens are measured.", batch, length, most_tokens);
  return Sizes(device, config, path, batch, length);
}

// One row; false where the results are wrong.
bool run_row(const AttentionFlags& flags, const Sizes& s, gpu::Device& device, BenchReport& report) {
  const Peaks peaks = flags.bench.peaks(device.info());
  const QkvAttentionBackward layer = make_layer(device, s);
  const Errors errors = verify(device, s, layer);
  const bool passed = errors.passed(s);
  const auto before = device.profile();
  Json row = {{"shape", fmt::format("{}x{}", s.batch, s.length)},
              {"batch", s.batch},
              {"length", s.length},
              {"heads", s.heads},
              {"key_heads", s.key_heads},
              {"head_dim", s.head_dim},
              {"by", s.how()},
              {"correct", passed},
              {"errors", {{"o", errors.o}, {"d_qkv", errors.d_qkv}, {"sampled", errors.sampled}}},
              {"allowed", {{"o", s.bar_of_o()}, {"d_qkv", s.bar_of_gradient()}}},
              {"forward", timed(device, flags, s, layer, false, peaks)},
              {"backward", timed(device, flags, s, layer, true, peaks)}};
  print_row(report.table(), s, row, passed);
  row["kernels"] = print_kernels(report.table(), profile_of_each(device.profile(), before), peaks);
  report.add(std::move(row));
  return passed;
}

int run(const AttentionFlags& flags) {
  const ModelConfig config = flags.shape.config();
  BenchReport report("attention", flags.bench, {{"model", flags.shape.label()}, {"profile", flags.bench.device.profile}});
  bool passed = true;
  const std::size_t rows = std::max(flags.batch.size(), flags.length.size());
  for (std::size_t i = 0; i < rows; ++i) {
    gpu::Device device = flags.bench.device.open();
    const ProductPath path = flags.bench.device.path(device.info());
    report.begin(device, path);
    if (i == 0) print_head(report.table(), flags, config);
    passed = run_row(flags, sizes_of_row(i, flags, device, config, path), device, report) && passed;
  }
  report.finish();
  return passed ? exit_done : exit_device;
}

}  // namespace

void add_bench_attention(CLI::App& bench, Action& action) {
  auto flags = std::make_shared<AttentionFlags>();
  CLI::App* attention = bench.add_subcommand(
      "attention", "Times attention, forward and backward: norm and rotation of queries and keys, softmax, and both products.\n"
                   "Results are compared first with attention in f32 on the same values; exit code 3 where they are WRONG.\n"
                   "TFLOP/s counts the half that causality leaves: two products forward, five backward.");
  flags->shape.add_to(*attention);
  attention->add_option("--batch", flags->batch, "Segments; several values give several rows")
      ->capture_default_str()->check(CLI::Range(1, 65536));
  attention->add_option("--length", flags->length, "Tokens of a segment; several values give several rows")
      ->capture_default_str()->check(CLI::Range(1, 1 << 20));
  attention->add_option("--repeats", flags->repeats, "Timed batches of about 0.1 s; the median is shown")
      ->capture_default_str()->check(CLI::Range(1, 1000));
  flags->bench.add_to(*attention);
  attention->callback([flags, &action] { action = [flags] { return run(*flags); }; });
}

}  // namespace nibble::cli
