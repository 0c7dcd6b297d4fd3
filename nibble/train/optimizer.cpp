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
  record(recorder, AdamW{.weights = weights.params, .gradients = weights.grads, .first_moment = weights.first_moment,
                         .second_moment = weights.second_moment, .norm_and_factor = norm_and_factor_, .step = step,
                         .learning_rate = learning_rate, .beta1 = options_.adam_beta1, .beta2 = options_.adam_beta2,
                         .epsilon = options_.adam_epsilon, .weight_decay = options_.weight_decay});
}

}  // namespace nibble
