#include "nibble/model/parity.h"

#include "nibble/base/error.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace nibble {
namespace {

// Batch rows without their padding, one segment each.
struct GoldenRows {
  std::vector<std::uint32_t> tokens, position, segment_begin, segment_end, label_rows, labels;
  std::uint32_t first_row_tokens = 0;

  TokenStream stream() const {
    return {.tokens = tokens, .position = position, .segment_begin = segment_begin, .segment_end = segment_end,
            .label_rows = label_rows, .labels = labels};
  }
};

std::vector<std::int32_t> read_i32(const SafetensorsFile& file, std::string_view name) {
  const TensorInfo& info = file.at(name);
  check<DataError>(info.dtype == DType::i32 && info.shape.size() == 2, file.path().string(),
                   "Tensor \"{}\" must be I32 of two dimensions, not {} {}.", name, info.dtype_name, to_string(info.shape));
  std::vector<std::int32_t> values(info.numel());
  file.read(info, 0, std::as_writable_bytes(std::span(values)));
  return values;
}

GoldenRows read_rows(const SafetensorsFile& file) {
  const auto ids = read_i32(file, "input_ids"), labels = read_i32(file, "labels"), mask = read_i32(file, "attention_mask");
  check<DataError>(ids.size() == labels.size() && ids.size() == mask.size(), file.path().string(),
                   "input_ids, labels and attention_mask differ in size.");
  const auto rows = static_cast<std::size_t>(file.at("input_ids").shape[0]);
  const std::size_t width = rows == 0 ? 0 : ids.size() / rows;
  GoldenRows result;
  for (std::size_t row = 0; row < rows; ++row) {
    const auto first = mask.begin() + static_cast<std::ptrdiff_t>(row * width);
    const auto length = static_cast<std::uint32_t>(std::find(first, first + static_cast<std::ptrdiff_t>(width), 0) - first);
    const auto begin = static_cast<std::uint32_t>(result.tokens.size());
    for (std::uint32_t i = 0; i < length; ++i) {
      const std::size_t at = row * width + i;
      result.tokens.push_back(static_cast<std::uint32_t>(ids[at]));
      result.position.push_back(i);
      result.segment_begin.push_back(begin);
      result.segment_end.push_back(begin + length);
      if (i + 1 < length && labels[at + 1] >= 0) {
        result.label_rows.push_back(begin + i);
        result.labels.push_back(static_cast<std::uint32_t>(labels[at + 1]));
      }
    }
    if (row == 0) result.first_row_tokens = length;
  }
  check<DataError>(!result.labels.empty(), file.path().string(), "No token of the golden rows is labelled.");
  return result;
}

double norm(std::span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += double{value} * value;
  return std::sqrt(sum);
}

double relative_error(std::span<const float> ours, std::span<const float> reference) {
  double sum = 0;
  for (std::size_t i = 0; i < ours.size(); ++i) sum += std::pow(double{ours[i]} - reference[i], 2);
  const double error = std::sqrt(sum) / std::max(norm(reference), std::numeric_limits<double>::min());
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

double cosine(std::span<const float> ours, std::span<const float> reference) {
  double dot = 0;
  for (std::size_t i = 0; i < ours.size(); ++i) dot += double{ours[i]} * reference[i];
  const double result = dot / std::max(norm(ours) * norm(reference), std::numeric_limits<double>::min());
  return std::isfinite(result) ? result : -1.0;
}

void compare_logits(Model& model, const DeviceStream& stream, const GoldenRows& rows, const SafetensorsFile& golden,
                    ParityReport& report) {
  gpu::Recorder recorder(model.device());
  const Tensor residual = model.forward(recorder, stream);
  const std::size_t vocab = model.config().vocab_size;
  std::vector<float> logits;
  std::vector<std::uint32_t> indices(rows.first_row_tokens);
  for (std::uint32_t i = 0; i < rows.first_row_tokens; ++i) indices[i] = i;
  for (std::uint32_t begin = 0; begin < indices.size(); begin += model.max_logit_rows()) {
    const auto count = std::min<std::uint32_t>(model.max_logit_rows(), rows.first_row_tokens - begin);
    const Tensor picked = model.device().tensor<std::uint32_t>(DType::u32, {count}, std::span(indices).subspan(begin, count),
                                                               "logit rows");
    const Tensor chunk = model.logits(recorder, residual, picked, count);
    recorder.submit();
    const auto values = model.device().read<float>(chunk);
    logits.insert(logits.end(), values.begin(), values.end());
  }
  auto reference = golden.read_as_f32("logits0");
  check<DataError>(reference.size() >= logits.size() && reference.size() % vocab == 0, golden.path().string(),
                   "logits0 has {} values; {} rows of {} are needed.", reference.size(), rows.first_row_tokens, vocab);
  reference.resize(logits.size());
  report.logits_cosine = cosine(logits, reference);
  report.logits_error = relative_error(logits, reference);
}

// Where the gradient of a name like "base_model.model.model.layers.3.mlp.up_proj.lora_B.weight" lies.
Tensor gradient_of(const Model& model, const std::string& peft_name) {
  for (std::uint32_t layer = 0; layer < model.config().num_layers; ++layer) {
    for (const Projection p : all_projections) {
      const LoraSlot& slot = model.lora()->slot(layer, p);
      if (!slot.used()) continue;
      if (peft_name == peft_tensor_name(layer, p, LoraMatrix::a)) return slot.a_grad;
      if (peft_name == peft_tensor_name(layer, p, LoraMatrix::b)) return slot.b_grad;
    }
  }
  return {};
}

void compare_gradients(Model& model, const Tensor& d_head, const SafetensorsFile& golden, ParityReport& report) {
  constexpr std::string_view prefix = "grad.";
  for (const auto& [name, info] : golden.tensors()) {
    if (!name.starts_with(prefix)) continue;
    const std::string peft_name = name.substr(prefix.size());
    const Tensor ours = peft_name == "lm_head.weight" ? d_head : gradient_of(model, peft_name);
    check<DataError>(static_cast<bool>(ours), golden.path().string(), "\"{}\" is the gradient of no matrix of this adapter.",
                     name);
    const auto reference = golden.read_as_f32(name);
    check<DataError>(reference.size() == ours.size(), golden.path().string(), "\"{}\" is {}; the adapter's matrix is {}.",
                     name, to_string(info.shape), ours.shape_text());
    const auto values = model.device().read<float>(ours);
    report.gradients.push_back({peft_name, relative_error(values, reference), cosine(values, reference)});
  }
  check<DataError>(!report.gradients.empty(), golden.path().string(), "The file holds no gradients (\"grad.*\").");
}

void compare_nf4(Model& model, const DeviceWeights& weights, const SafetensorsFile& golden, ParityReport& report) {
  for (std::uint32_t layer = 0; layer < model.config().num_layers; ++layer) {
    for (const Projection p : all_projections) {
      const std::string module = projection_module_name(layer, p);
      const TensorInfo* packed = golden.find("nf4.packed." + module);
      if (!packed) continue;
      const Nf4Matrix& matrix = weights.layers[layer].projection(p);
      std::vector<std::uint8_t> codes(packed->bytes), ours(matrix.packed.bytes());
      golden.read(*packed, 0, std::as_writable_bytes(std::span(codes)));
      model.device().read(matrix.packed, std::as_writable_bytes(std::span(ours)));
      check<DataError>(codes.size() == ours.size(), golden.path().string(), "\"{}\" has {} bytes; the model has {}.",
                       packed->name, codes.size(), ours.size());
      for (std::size_t i = 0; i < codes.size(); ++i) {
        report.nf4_codes += 2;
        report.nf4_differences += (codes[i] >> 4 != ours[i] >> 4) + ((codes[i] & 15) != (ours[i] & 15));
      }
      const auto absmax = golden.read_as_f32("nf4.absmax." + module);
      const auto our_absmax = model.device().read<float>(matrix.absmax);
      check<DataError>(absmax.size() == our_absmax.size(), golden.path().string(), "\"nf4.absmax.{}\" has {} values, not {}.",
                       module, absmax.size(), our_absmax.size());
      for (std::size_t i = 0; i < absmax.size(); ++i) report.nf4_differences += absmax[i] != our_absmax[i];
    }
  }
}

}  // namespace

ParityBars parity_bars(ProductPath path) {
  if (path == ProductPath::f32) {
    return {.loss_error = 1e-5, .logits_cosine = 0.999999, .gradient_error = 1e-3, .gradient_cosine = 0.999999};
  }
  return {.loss_error = 5e-4, .logits_cosine = 0.99999, .gradient_error = 1e-2, .gradient_cosine = 0.9999};
}

const GradientParity& ParityReport::worst_gradient() const {
  return *std::max_element(gradients.begin(), gradients.end(), [](const auto& x, const auto& y) { return x.error < y.error; });
}

const GradientParity& ParityReport::worst_direction() const {
  return *std::min_element(gradients.begin(), gradients.end(),
                           [](const auto& x, const auto& y) { return x.cosine < y.cosine; });
}

bool ParityReport::passes(const ParityBars& bars) const {
  return loss_error <= bars.loss_error && logits_cosine >= bars.logits_cosine && nf4_differences == 0 &&
         worst_gradient().error <= bars.gradient_error && worst_direction().cosine >= bars.gradient_cosine;
}

std::uint32_t golden_tokens(const SafetensorsFile& golden) {
  return static_cast<std::uint32_t>(read_rows(golden).tokens.size());
}

ParityReport compare_with_golden(Model& model, const DeviceWeights& weights, const SafetensorsFile& golden) {
  check(model.lora() && model.lora()->grads, "verify", "The model has no trainable adapter.");
  const GoldenRows rows = read_rows(golden);
  ParityReport report;
  gpu::Recorder recorder(model.device());
  const DeviceStream stream = model.upload(recorder, rows.stream());
  compare_logits(model, stream, rows, golden, report);

  recorder.clear(model.lora()->grads);
  Tensor d_head;
  if (golden.find("grad.lm_head.weight")) {
    d_head = model.device().tensor(DType::f32, {model.config().vocab_size, model.config().hidden_size}, "head gradient");
  }
  const auto labels = static_cast<std::uint32_t>(rows.labels.size());
  const Head::Loss loss = model.loss_and_gradients(recorder, stream, {.factor = 1.0f / static_cast<float>(labels)}, {}, d_head);
  recorder.submit();
  for (const float value : model.device().read<float>(loss.loss)) report.loss += value;
  report.loss /= labels;
  report.reference_loss = golden.read_as_f32("loss").at(0);
  report.loss_error = std::fabs(report.loss - report.reference_loss) / std::fabs(report.reference_loss);
  compare_gradients(model, d_head, golden, report);
  compare_nf4(model, weights, golden, report);
  return report;
}

}  // namespace nibble
