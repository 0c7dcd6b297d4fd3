#pragma once

#include "nibble/model/trained_head.h"
#include "nibble/model/trained_tokens.h"
#include "nibble/weights/lora_weights.h"

#include <string_view>

namespace nibble {

struct AdamWOptions {
  double adam_beta1 = 0.9, adam_beta2 = 0.999, adam_epsilon = 1e-8, weight_decay = 0.0;
  double max_grad_norm = 1.0;  // 0: gradients are not clipped
  double loraplus_ratio = 1.0;  // the matrices B and magnitudes learn so many times faster than A (LoRA+, Hayou et al. 2024)
  double head_ratio = 1.0;      // and so many times a head that is trained
  double tokens_ratio = 1.0;    // and rows of tokens
};

// Known settings by name: "pytorch", those of torch.optim.AdamW without decay, and "original", betas 0.9 and 0.95, epsilon
// 1e-8, decay 0.1. UsageError lists the names.
AdamWOptions adamw_recipe(std::string_view name);

// AdamW (Loshchilov and Hutter 2019, as torch.optim.AdamW) over all adapters at once, after clipping by their global norm. With
// LoRA+ as PEFT's create_loraplus_optimizer has it: one decay coefficient, each rate its own.
class Optimizer {
 public:
  Optimizer(gpu::Device& device, const AdamWOptions& options);

  // Records update number `step`, from 1 on, with the moments of these weights. The gradients stay as they are. An update with a norm that is not finite
  // changes nothing, nor does any after it until forgive(). A head is updated too, and rows of tokens, under
  // the norm of all gradients together; TrainedHead::settle() must follow.
  void record_step(gpu::Recorder& recorder, const LoraWeights& weights, Moments& moments, double learning_rate, std::uint64_t step,
                   TrainedHead* head = nullptr, TrainedTokens* tokens = nullptr);

  // The same for the adapters of one layer alone, where the gradients of the others are zero.
  void record_layer_step(gpu::Recorder& recorder, const LoraWeights& weights, Moments& moments, std::uint32_t layer,
                         double learning_rate, std::uint64_t step);

  // After a norm that was not finite: updates recorded from now on take place again.
  void forgive();

  // (2) f32: the global norm before clipping, and the factor that was applied.
  const gpu::Tensor& norm_and_factor() const { return norm_and_factor_; }

 private:
  // Elements of the flat tensors that learn at one rate, from a multiple of lora_alignment on.
  struct Range {
    std::uint64_t begin = 0, size = 0;
    double learning_rate = 0;
  };
  void record_norm(gpu::Recorder& recorder, const std::vector<gpu::Tensor>& gradients);
  AdamWRule rule(double learning_rate, std::uint64_t step) const;
  void record_range(gpu::Recorder& recorder, const LoraWeights& weights, Moments& moments, const Range& range, std::uint64_t step);

  gpu::Device* device_;
  AdamWOptions options_;
  gpu::Tensor norm_and_factor_, partials_;
};

}  // namespace nibble
