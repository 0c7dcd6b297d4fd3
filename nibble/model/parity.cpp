#include "nibble/model/parity.h"

#include "nibble/base/error.h"
#include "nibble/model/golden.h"
#include "nibble/weights/scale_room.h"

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

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

void compare_nf4(Model& model, const DeviceWeights& weights, const SafetensorsFile& golden, ParityReport& report) {
  for (std::uint32_t layer = 0; layer < model.config().num_layers; ++layer) {
    for (const Projection p : all_projections) {
      const std::string module = projection_module_name(layer, p);
      const TensorInfo* packed = golden.find("nf4.packed." + module);
      if (!packed) continue;
      const Nf4Matrix& matrix = weights.stored(model.device(), layer)[static_cast<std::size_t>(p)];
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
      const auto our_absmax = read_absmax(model.device(), matrix);
      check<DataError>(absmax.size() == our_absmax.size(), golden.path().string(), "\"nf4.absmax.{}\" has {} values, not {}.",
                       module, absmax.size(), our_absmax.size());
      for (std::size_t i = 0; i < absmax.size(); ++i) report.nf4_differences += absmax[i] != our_absmax[i];
    }
  }
}

}  // namespace

ParityBars parity_bars(ProductPath path) {
  if (path == ProductPath::f32) {
    return {.loss_error = 1e-5, .dpo_loss_error = 1e-5, .logits_cosine = 0.999999, .gradient_error = 1e-3,
            .gradient_cosine = 0.999999};
  }
  return {.loss_error = 5e-4, .dpo_loss_error = 2e-3, .logits_cosine = 0.99999, .gradient_error = 1e-2, .gradient_cosine = 0.9999};
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
  return static_cast<std::uint32_t>((holds_preferences(golden) ? read_golden_pairs(golden) : read_golden_rows(golden)).tokens.size());
}

ParityReport compare_with_golden(Model& model, const ModelState& state, const SafetensorsFile& golden) {
  check(model.lora() && model.lora()->grads, "verify", "The model has no trainable adapter.");
  const GoldenRows rows = read_golden_rows(golden);
  ParityReport report;
  gpu::Recorder recorder(model.device());
  const DeviceStream stream = model.upload(recorder, rows.stream());
  compare_logits(model, stream, rows, golden, report);

  recorder.clear(model.lora()->grads);
  if (model.tokens()) model.tokens()->clear_gradients(recorder);
  Tensor d_head;
  if (state.trained_head()) {
    d_head = state.trained_head()->gradient();
    recorder.clear(d_head);
  } else if (golden.find("grad.lm_head.weight")) {
    d_head = model.device().tensor(DType::f32, {model.config().vocab_size, model.config().hidden_size}, "head gradient");
  }
  const auto labels = static_cast<std::uint32_t>(rows.labels.size());
  const Head::Loss loss = model.loss_and_gradients(recorder, stream, {.factor = 1.0f / static_cast<float>(labels)}, {}, d_head);
  recorder.submit();
  for (const float value : model.device().read<float>(loss.loss)) report.loss += value;
  report.loss /= labels;
  report.reference_loss = golden.read_as_f32("loss").at(0);
  report.loss_error = std::fabs(report.loss - report.reference_loss) / std::fabs(report.reference_loss);
  report.gradients = compare_gradients(model, d_head, golden, "grad.");
  compare_nf4(model, state.weights(), golden, report);
  return report;
}

}  // namespace nibble
