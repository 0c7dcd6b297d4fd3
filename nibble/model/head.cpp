#include "nibble/model/head.h"

#include "nibble/base/error.h"
#include "nibble/kernels/cross_entropy.h"
#include "nibble/kernels/product.h"
#include "nibble/kernels/rms_norm.h"
#include "nibble/kernels/row_kernel.h"
#include "nibble/kernels/token_rows.h"
#include "nibble/model/frozen_weights.h"

#include <algorithm>

namespace nibble {

std::uint32_t Head::default_chunk_rows(const gpu::AdapterInfo& info, std::uint32_t vocab_size) {
  constexpr std::uint64_t least = std::uint64_t{128} << 20, most = std::uint64_t{320} << 20;
  const std::uint64_t bytes = std::min(std::clamp(info.memory_bytes / 64, least, most), info.limits.max_binding);
  const std::uint64_t rows = bytes / (std::uint64_t{vocab_size} * 4), multiple = rows >= 128 ? 128 : 64;
  return static_cast<std::uint32_t>(std::clamp<std::uint64_t>(rows / multiple * multiple, 64, 4096));
}

// Chunks begin where bindings may begin: 64 values of 4 bytes.
HeadOptions Head::settled(const gpu::AdapterInfo& info, const ModelConfig& config, HeadOptions options) {
  if (options.chunk_rows == 0) options.chunk_rows = default_chunk_rows(info, config.vocab_size);
  options.chunk_rows = std::min((options.chunk_rows + 63) / 64 * 64, std::max(1u, options.max_labels));
  return options;
}

namespace {

std::uint32_t product_scratch_size(const gpu::Device& device, const ModelConfig& config, const HeadOptions& options) {
  return static_cast<std::uint32_t>(
      product_scratch(device, options.path, options.chunk_rows, config.vocab_size, config.hidden_size, false));
}

}  // namespace

Head::Head(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights, const HeadOptions& options)
    : config_(config), weights_(weights), options_(settled(device.info(), config, options)) {
  const std::uint32_t labels = std::max(1u, options_.max_labels);
  const std::uint32_t chunk = options_.chunk_rows, hidden = config.hidden_size, vocab = config.vocab_size;
  normed_ = make_operand(device, options_.path, labels, hidden, "head.normed");
  inv_rms_ = device.tensor(DType::f32, {labels}, "head.inv_rms");
  logits_ = device.tensor(DType::f32, {chunk, vocab}, "head.logits");
  loss_ = device.tensor(DType::f32, {labels}, "head.loss");
  correct_ = device.tensor(DType::u32, {labels}, "head.correct");
  if (!options_.trainable) return;
  label_weights_ = device.tensor(DType::f32, {labels}, "head.label_weights");
  d_normed_ = device.tensor(DType::f32, {labels, hidden}, "head.d_normed");
  d_logits_ = options_.path == ProductPath::f32 ? Operand{.data = logits_}
                                                : make_operand(device, options_.path, chunk, vocab, "head.d_logits");
  if (const std::uint32_t size = product_scratch_size(device, config, options_)) {
    product_scratch_ = device.tensor(DType::f32, {size}, "head.partial products");
  }
}

std::uint64_t Head::bytes(const gpu::Device& device, const ModelConfig& config, HeadOptions options) {
  options = settled(device.info(), config, options);
  const std::uint32_t labels = std::max(1u, options.max_labels), chunk = options.chunk_rows, hidden = config.hidden_size,
                      vocab = config.vocab_size;
  const std::uint64_t numbers = gpu::buffer_bytes(DType::f32, {labels}), logits = gpu::buffer_bytes(DType::f32, {chunk, vocab});
  std::uint64_t bytes = operand_bytes(options.path, labels, hidden) + 3 * numbers + logits;
  if (!options.trainable) return bytes;
  bytes += numbers + gpu::buffer_bytes(DType::f32, {labels, hidden});
  if (options.path != ProductPath::f32) bytes += operand_bytes(options.path, chunk, vocab);
  const std::uint32_t partial_sums = product_scratch_size(device, config, options);
  return bytes + (partial_sums > 0 ? gpu::buffer_bytes(DType::f32, {partial_sums}) : 0);
}

std::vector<gpu::RowRange> Head::chunks(std::uint32_t labels) const {
  std::vector<gpu::RowRange> result;
  for (std::uint32_t begin = 0; begin < labels; begin += options_.chunk_rows) {
    result.push_back({begin, std::min(labels, begin + options_.chunk_rows)});
  }
  return result;
}

void Head::use_base(bool use) {
  check<UsageError>(!use || weights_.base_head.data, "head",
                    "The base's own head is not loaded, as one that is trained took its place; without the adapter nothing can "
                    "be computed.");
  uses_base_ = use;
}

Weight Head::weight() const { return weight_of(uses_base_ ? weights_.base_head : weights_.head); }

void Head::normalise(gpu::Recorder& recorder, const Tensor& x, const Tensor& rows, std::uint32_t count) {
  check(count <= inv_rms_.dim(0), "head", "{} labelled rows came; room was made for {}.", count, inv_rms_.dim(0));
  record(recorder, RmsNorm{.x = x, .weight = weights_.final_norm, .rows = rows, .y = first_rows(normed_, count),
                           .inv_rms = inv_rms_.rows(0, count), .eps = config_.rms_norm_eps});
}

Tensor Head::chunk_logits(gpu::Recorder& recorder, std::uint32_t begin, std::uint32_t end) {
  const Tensor logits = logits_.rows(0, end - begin);
  record(recorder, ProductNT{.path = options_.path, .x = operand_rows(normed_, {begin, end}), .w = weight(), .y = logits,
                             .plan_rows = options_.chunk_rows});
  return logits;
}

void Head::losses(gpu::Recorder& recorder, const DeviceStream& stream) {
  for (const auto [begin, end] : chunks(stream.labels)) {
    record(recorder, CrossEntropy{.logits = chunk_logits(recorder, begin, end), .labels = stream.label_ids.rows(begin, end),
                                  .loss = loss_.rows(begin, end), .correct = correct_.rows(begin, end)});
  }
}

void Head::gradients(gpu::Recorder& recorder, const DeviceStream& stream, const LossOptions& loss, const Tensor& d_head) {
  const std::uint64_t partial_sums =
      d_head ? product_tn_scratch(recorder.device(), options_.chunk_rows, config_.vocab_size, config_.hidden_size) : 0;
  if (partial_sums > 0 && !head_scratch_) {
    head_scratch_ = recorder.device().tensor(DType::f32, {static_cast<std::uint32_t>(partial_sums)}, "head scratch");
  }
  const auto all = chunks(stream.labels);
  for (const auto [begin, end] : all) {
    // The first pass over a single chunk left its logits.
    const bool there = loss.preference && all.size() == 1;
    const Tensor logits = there ? logits_.rows(0, end) : chunk_logits(recorder, begin, end);
    const Operand d_logits = first_rows(d_logits_, end - begin);
    record(recorder, CrossEntropy{.logits = logits, .labels = stream.label_ids.rows(begin, end),
                                  .loss = loss_.rows(begin, end), .correct = correct_.rows(begin, end),
                                  .d_logits = d_logits, .factor = loss.preference ? 1.0f : loss.factor,
                                  .weights = loss.preference ? label_weights_.rows(begin, end) : Tensor{},
                                  .focal_gamma = loss.preference ? 0.0f : loss.focal_gamma});
    record(recorder, ProductNN{.path = options_.path, .x = d_logits, .w = weight(), .y = d_normed_.rows(begin, end),
                               .scratch = product_scratch_, .plan_rows = options_.chunk_rows});
    if (loss.rows.gradient) {
      record(recorder, HeadRowsBackward{.d_logits = d_logits, .normed = operand_rows(normed_, {begin, end}), .ids = loss.rows.ids,
                                        .d_rows = loss.rows.gradient});
    }
    if (d_head) {
      record(recorder, ProductTN{.x = d_logits, .w = operand_rows(normed_, {begin, end}), .y = d_head, .scratch = head_scratch_});
    }
  }
}

Head::Loss Head::forward(gpu::Recorder& recorder, const DeviceStream& stream, const Tensor& x) {
  const std::uint32_t labels = stream.labels;
  if (labels == 0) return {loss_.rows(0, 1), correct_.rows(0, 1)};
  normalise(recorder, x, stream.label_rows, labels);
  losses(recorder, stream);
  return {loss_.rows(0, labels), correct_.rows(0, labels)};
}

Head::Loss Head::forward_backward(gpu::Recorder& recorder, const DeviceStream& stream, const Tensor& x,
                                  const LossOptions& loss, const Tensor& dx, const Tensor& d_head) {
  check(options_.trainable, "head", "The head was made without room for gradients.");
  const std::uint32_t labels = stream.labels;
  recorder.clear(dx);
  if (labels == 0) return {loss_.rows(0, 1), correct_.rows(0, 1)};
  normalise(recorder, x, stream.label_rows, labels);
  if (loss.preference) {
    losses(recorder, stream);
    Preference preference = *loss.preference;
    preference.loss = loss_.rows(0, labels);
    preference.weights = label_weights_.rows(0, labels);
    record(recorder, preference);
  }
  gradients(recorder, stream, loss, d_head);
  record(recorder, RmsNormBackward{.dy = d_normed_.rows(0, labels), .x = x, .weight = weights_.final_norm,
                                   .inv_rms = inv_rms_.rows(0, labels), .rows = stream.label_rows, .dx = dx});
  return {loss_.rows(0, labels), correct_.rows(0, labels)};
}

Tensor Head::logits(gpu::Recorder& recorder, const Tensor& x, const Tensor& rows, std::uint32_t count) {
  check(count <= options_.chunk_rows, "head", "Logits of {} rows were asked for; a chunk holds {}.", count,
        options_.chunk_rows);
  normalise(recorder, x, rows, count);
  const Tensor logits = logits_.rows(0, count);
  record(recorder, ProductNT{.path = options_.path, .x = first_rows(normed_, count), .w = weight(), .y = logits});
  return logits;
}

}  // namespace nibble
