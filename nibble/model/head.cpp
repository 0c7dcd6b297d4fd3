#include "nibble/model/head.h"

#include "nibble/base/error.h"
#include "nibble/kernels/cross_entropy.h"
#include "nibble/kernels/cross_entropy_part.h"
#include "nibble/kernels/product.h"
#include "nibble/kernels/rms_norm.h"
#include "nibble/kernels/row_kernel.h"
#include "nibble/kernels/token_rows.h"
#include "nibble/model/frozen_weights.h"

#include <algorithm>
#include <array>

namespace nibble {

std::uint32_t Head::default_chunk_rows(const gpu::AdapterInfo& info, std::uint32_t vocab_size) {
  constexpr std::uint64_t least = std::uint64_t{128} << 20, most = std::uint64_t{320} << 20;
  const std::uint64_t bytes = std::min(std::clamp(info.memory_bytes / 64, least, most), info.limits.max_binding);
  const std::uint64_t rows = bytes / (std::uint64_t{vocab_size} * 4), multiple = rows >= 128 ? 128 : 64;
  return static_cast<std::uint32_t>(std::clamp<std::uint64_t>(rows / multiple * multiple, 64, 4096));
}

namespace {

TableSlices::Options slices_options(const HeadOptions& options) {
  return {.dtype = operand_dtype(options.path), .rows = options.slice_rows, .carried = options.carried};
}

// Entries of the vocabulary whose logits exist at a time: those of a slice and of the last one, or all.
std::array<std::uint32_t, 2> widths(const ModelConfig& config, const HeadOptions& options) {
  if (!TableSlices::needed(options.form, options.on_host)) return {config.vocab_size, config.vocab_size};
  const std::uint32_t slice = TableSlices::rows_of(config.vocab_size, config.hidden_size, slices_options(options));
  const std::uint32_t rest = config.vocab_size % slice;
  return {slice, rest > 0 ? rest : slice};
}

std::uint32_t product_scratch_size(const gpu::Device& device, const ModelConfig& config, const HeadOptions& options) {
  std::uint64_t most = 0;
  for (const std::uint32_t width : widths(config, options)) {
    most = std::max(most, product_scratch(device, options.path, options.chunk_rows, width, config.hidden_size, false));
  }
  return static_cast<std::uint32_t>(most);
}

HeadOptions of_weights(HeadOptions options, const DeviceWeights& weights) {
  options.form = weights.base_head.form;
  options.on_host = weights.base_head.on_host;
  return options;
}

}  // namespace

// Chunks begin where bindings may begin: 64 values of 4 bytes.
HeadOptions Head::settled(const gpu::AdapterInfo& info, const ModelConfig& config, HeadOptions options) {
  if (options.chunk_rows == 0) options.chunk_rows = default_chunk_rows(info, widths(config, options)[0]);
  options.chunk_rows = std::min((options.chunk_rows + 63) / 64 * 64, std::max(1u, options.max_labels));
  return options;
}

std::uint64_t Head::gradient_scratch(const gpu::Device& device, const ModelConfig& config, const HeadOptions& settled) {
  std::uint64_t most = 0;
  for (const std::uint32_t width : widths(config, settled)) {
    most = std::max(most, product_tn_scratch(device, settled.chunk_rows, width, config.hidden_size));
  }
  return most;
}

Head::Head(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights, const HeadOptions& options)
    : config_(config), weights_(weights), options_(settled(device.info(), config, of_weights(options, weights))) {
  const std::uint32_t labels = std::max(1u, options_.max_labels);
  const std::uint32_t chunk = options_.chunk_rows, hidden = config.hidden_size, width = widths(config, options_)[0];
  normed_ = make_operand(device, options_.path, labels, hidden, "head.normed");
  inv_rms_ = device.tensor(DType::f32, {labels}, "head.inv_rms");
  logits_ = device.tensor(DType::f32, {chunk, width}, "head.logits");
  loss_ = device.tensor(DType::f32, {labels}, "head.loss");
  correct_ = device.tensor(DType::u32, {labels}, "head.correct");
  if (TableSlices::needed(options_.form, options_.on_host)) {
    stats_ = device.tensor(DType::f32, {labels, 4}, "head.statistics");
    slices_ = std::make_unique<TableSlices>(device, weights.head, slices_options(options_));
    if (weights.head.buffer() != weights.base_head.buffer()) {
      base_slices_ = std::make_unique<TableSlices>(device, weights.base_head, slices_options(options_));
    }
  }
  if (!options_.trainable) return;
  label_weights_ = device.tensor(DType::f32, {labels}, "head.label_weights");
  d_normed_ = device.tensor(DType::f32, {labels, hidden}, "head.d_normed");
  d_logits_ = options_.path == ProductPath::f32 ? Operand{.data = logits_}
                                                : make_operand(device, options_.path, chunk, width, "head.d_logits");
  if (const std::uint32_t size = product_scratch_size(device, config, options_)) {
    product_scratch_ = device.tensor(DType::f32, {size}, "head.partial products");
  }
}

std::uint64_t Head::bytes(const gpu::Device& device, const ModelConfig& config, HeadOptions options) {
  options = settled(device.info(), config, options);
  const std::uint32_t labels = std::max(1u, options.max_labels), chunk = options.chunk_rows, hidden = config.hidden_size,
                      width = widths(config, options)[0];
  const std::uint64_t numbers = gpu::buffer_bytes(DType::f32, {labels}), logits = gpu::buffer_bytes(DType::f32, {chunk, width});
  std::uint64_t bytes = operand_bytes(options.path, labels, hidden) + 3 * numbers + logits;
  if (TableSlices::needed(options.form, options.on_host)) {
    bytes += gpu::buffer_bytes(DType::f32, {labels, 4}) +
             TableSlices::bytes(config.vocab_size, hidden, options.form, options.on_host, slices_options(options));
  }
  if (!options.trainable) return bytes;
  bytes += numbers + gpu::buffer_bytes(DType::f32, {labels, hidden});
  if (options.path != ProductPath::f32) bytes += operand_bytes(options.path, chunk, width);
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
  check<UsageError>(!use || weights_.base_head, "head",
                    "The base's own head is not loaded, as one that is trained took its place; without the adapter nothing can "
                    "be computed.");
  uses_base_ = use;
}

Weight Head::weight() const { return weight_of(table()); }

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
  if (slices_) return losses_in_slices(recorder, stream);
  for (const auto [begin, end] : chunks(stream.labels)) {
    record(recorder, CrossEntropy{.logits = chunk_logits(recorder, begin, end), .labels = stream.label_ids.rows(begin, end),
                                  .loss = loss_.rows(begin, end), .correct = correct_.rows(begin, end)});
  }
}

void Head::gradients(gpu::Recorder& recorder, const DeviceStream& stream, const LossOptions& loss, const Tensor& d_head) {
  const std::uint64_t partial_sums = d_head ? gradient_scratch(recorder.device(), config_, options_) : 0;
  if (partial_sums > 0 && !head_scratch_) {
    head_scratch_ = recorder.device().tensor(DType::f32, {static_cast<std::uint32_t>(partial_sums)}, "head scratch");
  }
  if (slices_) return gradients_in_slices(recorder, stream, loss, d_head);
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

void Head::preference_weights(gpu::Recorder& recorder, const LossOptions& loss, std::uint32_t labels) {
  Preference preference = *loss.preference;
  preference.loss = loss_.rows(0, labels);
  preference.weights = label_weights_.rows(0, labels);
  record(recorder, preference);
}

Head::Loss Head::forward_backward(gpu::Recorder& recorder, const DeviceStream& stream, const Tensor& x,
                                  const LossOptions& loss, const Tensor& dx, const Tensor& d_head) {
  check(options_.trainable, "head", "The head was made without room for gradients.");
  const std::uint32_t labels = stream.labels;
  recorder.clear(dx);
  if (labels == 0) return {loss_.rows(0, 1), correct_.rows(0, 1)};
  normalise(recorder, x, stream.label_rows, labels);
  if (loss.preference || slices_) losses(recorder, stream);
  if (loss.preference) preference_weights(recorder, loss, labels);
  gradients(recorder, stream, loss, d_head);
  record(recorder, RmsNormBackward{.dy = d_normed_.rows(0, labels), .x = x, .weight = weights_.final_norm,
                                   .inv_rms = inv_rms_.rows(0, labels), .rows = stream.label_rows, .dx = dx});
  return {loss_.rows(0, labels), correct_.rows(0, labels)};
}

Tensor Head::logits(gpu::Recorder& recorder, const Tensor& x, const Tensor& rows, std::uint32_t count) {
  check(count <= options_.chunk_rows, "head", "Logits of {} rows were asked for; a chunk holds {}.", count,
        options_.chunk_rows);
  normalise(recorder, x, rows, count);
  if (slices_) return logits_in_slices(recorder, count);
  const Tensor logits = logits_.rows(0, count);
  record(recorder, ProductNT{.path = options_.path, .x = first_rows(normed_, count), .w = weight(), .y = logits});
  return logits;
}

Tensor Head::slice_logits(gpu::Recorder& recorder, const Weight& weight, gpu::RowRange rows) {
  const Tensor logits = logits_.view({rows.end - rows.begin, weight.data.dim(0)});
  record(recorder, ProductNT{.path = options_.path, .x = operand_rows(normed_, rows), .w = weight, .y = logits, .scratch = product_scratch_,
                             .plan_rows = options_.chunk_rows});
  return logits;
}

void Head::losses_in_slices(gpu::Recorder& recorder, const DeviceStream& stream) {
  const std::uint32_t count = slices().count();
  for (std::uint32_t slice = 0; slice < count; ++slice) {
    const Weight weight = slices().slice(recorder, slice, slice + 1);
    for (const auto rows : chunks(stream.labels)) {
      const auto of = [&](const Tensor& tensor) { return tensor.rows(rows.begin, rows.end); };
      const LogitsPart part{slice_logits(recorder, weight, rows), slices().range(slice).begin};
      record(recorder, CrossEntropyPart{.part = part, .begins = slice == 0, .ends = slice + 1 == count, .labels = of(stream.label_ids),
                                        .stats = of(stats_), .loss = of(loss_), .correct = of(correct_)});
    }
  }
}

// From the last slice, which is still there, to the first, which the next pass begins with.
void Head::gradients_in_slices(gpu::Recorder& recorder, const DeviceStream& stream, const LossOptions& loss, const Tensor& d_head) {
  check(!loss.rows.gradient, "head", "Rows of tokens learn in a head that is read whole.");
  const std::uint32_t count = slices().count();
  for (std::uint32_t slice = count; slice-- > 0;) {
    const Weight weight = slices().slice(recorder, slice, slice > 0 ? slice - 1 : count);
    const gpu::RowRange range = slices().range(slice);
    for (const auto rows : chunks(stream.labels)) {
      const auto of = [&](const Tensor& tensor) { return tensor.rows(rows.begin, rows.end); };
      const Tensor logits = slice_logits(recorder, weight, rows);
      const Operand d_logits{d_logits_.data.view({logits.dim(0), logits.dim(1)}),
                             is_scaled(d_logits_) ? d_logits_.scale.rows(0, logits.dim(0)) : Tensor{}};
      record(recorder, CrossEntropySlopes{.part = {logits, range.begin}, .labels = of(stream.label_ids), .stats = of(stats_),
                                          .d_logits = d_logits, .factor = loss.preference ? 1.0f : loss.factor,
                                          .weights = loss.preference ? of(label_weights_) : Tensor{},
                                          .focal_gamma = loss.preference ? 0.0f : loss.focal_gamma});
      record(recorder, ProductNN{.path = options_.path, .x = d_logits, .w = weight, .y = of(d_normed_), .accumulate = slice + 1 < count,
                                 .scratch = product_scratch_, .plan_rows = options_.chunk_rows});
      if (d_head) {
        record(recorder, ProductTN{.x = d_logits, .w = operand_rows(normed_, rows), .y = d_head.rows(range.begin, range.end),
                                   .scratch = head_scratch_});
      }
    }
  }
}

Tensor Head::logits_in_slices(gpu::Recorder& recorder, std::uint32_t count) {
  if (!whole_logits_) {
    whole_logits_ = recorder.device().tensor(DType::f32, {options_.chunk_rows, config_.vocab_size}, "head.whole logits");
  }
  for (std::uint32_t slice = 0; slice < slices().count(); ++slice) {
    const auto [begin, end] = slices().range(slice);
    const Tensor logits = slice_logits(recorder, slices().slice(recorder, slice, slice + 1), {0, count});
    for (std::uint32_t row = 0; row < count; ++row) {
      recorder.copy(logits.part(std::uint64_t{row} * (end - begin), {end - begin}),
                    whole_logits_.part(std::uint64_t{row} * config_.vocab_size + begin, {end - begin}));
    }
  }
  return whole_logits_.rows(0, count);
}

}  // namespace nibble
