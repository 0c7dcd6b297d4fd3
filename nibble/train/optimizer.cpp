#include "nibble/train/optimizer.h"

#include "nibble/kernels/adamw.h"
#include "nibble/kernels/grad_norm.h"

namespace nibble {

Optimizer::Optimizer(gpu::Device& device, const AdamWOptions& options)
    : options_(options), norm_and_factor_(device.tensor(DType::f32, {2}, "gradient norm")) {}

void Optimizer::record_step(gpu::Recorder& recorder, const LoraWeights& weights, double learning_rate, std::uint64_t step) {
  if (!partials_) {
    partials_ = recorder.device().tensor(DType::f32, {grad_norm_partials(recorder.device(), {weights.grads})},
                                         "gradient norm partials");
  }
  record(recorder, GradNorm{.gradients = {weights.grads}, .partials = partials_, .norm_and_factor = norm_and_factor_,
                            .max_norm = options_.max_grad_norm});
  const auto update = [&](std::uint64_t begin, std::uint64_t end, double rate) {
    const auto part = [&](const gpu::Tensor& flat) { return flat.part(begin, {static_cast<std::uint32_t>(end - begin)}); };
    record(recorder, AdamW{.weights = part(weights.params), .gradients = part(weights.grads),
                           .first_moment = part(weights.first_moment), .second_moment = part(weights.second_moment),
                           .norm_and_factor = norm_and_factor_,
                           .rule = {.step = step, .learning_rate = rate, .beta1 = options_.adam_beta1,
                                    .beta2 = options_.adam_beta2, .epsilon = options_.adam_epsilon,
                                    .weight_decay = options_.weight_decay}});
  };
  const std::uint64_t size = weights.params.size();
  if (options_.loraplus_ratio == 1.0) return update(0, size, learning_rate);
  update(0, weights.b_begin, learning_rate);
  update(weights.b_begin, size, learning_rate * options_.loraplus_ratio);
}

}  // namespace nibble
