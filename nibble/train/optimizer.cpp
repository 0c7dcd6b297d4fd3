#include "nibble/train/optimizer.h"

#include "nibble/base/error.h"
#include "nibble/kernels/grad_norm.h"

#include <array>
#include <span>

namespace nibble {

static_assert(lora_alignment % moment_block == 0, "Ranges that are updated apart share no block of moments.");

AdamWOptions adamw_recipe(std::string_view name) {
  if (name == "pytorch") return {};
  check<UsageError>(name == "original", "recipe", "\"{}\" is no recipe; there are pytorch and original.", name);
  return {.adam_beta1 = 0.9, .adam_beta2 = 0.95, .adam_epsilon = 1e-8, .weight_decay = 0.1};
}

Optimizer::Optimizer(gpu::Device& device, const AdamWOptions& options)
    : device_(&device), options_(options), norm_and_factor_(device.tensor(DType::f32, {2}, "gradient norm")) {}

void Optimizer::record_norm(gpu::Recorder& recorder, const std::vector<gpu::Tensor>& gradients) {
  const std::uint32_t needed = grad_norm_partials(recorder.device(), gradients);
  if (!partials_ || partials_.dim(0) < needed) {
    partials_ = recorder.device().tensor(DType::f32, {needed}, "gradient norm partials");
  }
  record(recorder, GradNorm{.gradients = gradients, .partials = partials_, .norm_and_factor = norm_and_factor_,
                            .max_norm = options_.max_grad_norm, .keep_nonfinite = true});
}

void Optimizer::forgive() {
  const std::array<float, 2> fresh{};
  device_->write(norm_and_factor_, std::as_bytes(std::span(fresh)));
}

AdamWRule Optimizer::rule(double learning_rate, std::uint64_t step) const {
  return {.step = step, .learning_rate = learning_rate, .beta1 = options_.adam_beta1, .beta2 = options_.adam_beta2,
          .epsilon = options_.adam_epsilon, .weight_decay = options_.weight_decay};
}

void Optimizer::record_range(gpu::Recorder& recorder, const LoraWeights& weights, Moments& moments, const Range& range, std::uint64_t step) {
  const auto part = [&](const gpu::Tensor& flat) { return flat.part(range.begin, {static_cast<std::uint32_t>(range.size)}); };
  moments.update(recorder, {.weights = part(weights.params), .gradients = part(weights.grads), .norm_and_factor = norm_and_factor_,
                            .rule = rule(range.learning_rate, step), .first = range.begin});
}

void Optimizer::record_step(gpu::Recorder& recorder, const LoraWeights& weights, Moments& moments, double learning_rate,
                            std::uint64_t step, TrainedHead* head, TrainedTokens* tokens) {
  std::vector<gpu::Tensor> gradients = {weights.grads};
  if (head) gradients.push_back(head->gradient());
  if (tokens) {
    for (const gpu::Tensor& rows : tokens->gradients()) gradients.push_back(rows);
  }
  record_norm(recorder, gradients);
  const std::uint64_t size = weights.params.size(), b_begin = weights.b_begin;
  if (options_.loraplus_ratio == 1.0) {
    record_range(recorder, weights, moments, {0, size, learning_rate}, step);
  } else {
    record_range(recorder, weights, moments, {0, b_begin, learning_rate}, step);
    record_range(recorder, weights, moments, {b_begin, size - b_begin, learning_rate * options_.loraplus_ratio}, step);
  }
  if (head) head->update(recorder, norm_and_factor_, rule(learning_rate * options_.head_ratio, step));
  if (tokens) tokens->update(recorder, norm_and_factor_, rule(learning_rate * options_.tokens_ratio, step));
}

void Optimizer::record_layer_step(gpu::Recorder& recorder, const LoraWeights& weights, Moments& moments, std::uint32_t layer,
                                  double learning_rate, std::uint64_t step) {
  record_norm(recorder, {weights.grads});  // those of the other layers are zero
  for (const LoraSlot& slot : weights.layers.at(layer)) {
    if (!slot.used()) continue;
    record_range(recorder, weights, moments, {slot.a.offset() / sizeof(float), slot.a.size(), learning_rate}, step);
    for (const gpu::Tensor& faster : {slot.b, slot.magnitude}) {
      if (faster) record_range(recorder, weights, moments, {faster.offset() / sizeof(float), faster.size(), learning_rate * options_.loraplus_ratio}, step);
    }
  }
}

}  // namespace nibble
