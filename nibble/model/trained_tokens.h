#pragma once

#include "nibble/kernels/adamw.h"
#include "nibble/kernels/operand.h"
#include "nibble/weights/device_weights.h"
#include "nibble/weights/peft.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace nibble {

// Some rows of a table on the device that are an adapter's own: their values in f32 with gradient and moments of AdamW, and the base's,
// of which the table holds one or the other. It has them in its own type, so that kernels that read it know nothing of them.
class TokenRows {
 public:
  // The table must hold the base's rows.
  TokenRows(gpu::Device& device, const DenseMatrix& table, std::span<const std::uint32_t> ids, std::span<const float> values, bool trainable);

  const gpu::Tensor& ids() const { return ids_; }            // (n) u32
  const gpu::Tensor& values() const { return values_; }      // (n, hidden) f32
  const gpu::Tensor& gradient() const { return gradient_; }  // likewise; kernels add to it, callers clear it
  const gpu::Tensor& first_moment() const { return first_; }
  const gpu::Tensor& second_moment() const { return second_; }

  // From here on the table holds the adapter's rows, or the base's.
  void show(gpu::Recorder& recorder, bool of_adapter);
  // One update by the gradient times the factor in `norm_and_factor` (see GradNorm).
  void update(gpu::Recorder& recorder, const gpu::Tensor& norm_and_factor, const AdamWRule& rule);

  static std::uint64_t bytes(std::size_t tokens, std::uint32_t hidden, bool trainable);

 private:
  DenseMatrix table_;
  gpu::Tensor ids_, values_, base_, gradient_, first_, second_;
  bool of_adapter_ = false;  // what the table holds, when all that is recorded is done
};

// What a head's backward pass adds for them.
struct HeadRowsGradient {
  gpu::Tensor ids, gradient;  // empty: none
};

// The tokens of an adapter: their rows of the embedding, and of the head. A tied head is the embedding, so its part of the gradient is
// added to the same rows.
class TrainedTokens {
 public:
  // `weights` must hold the base's rows.
  TrainedTokens(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights, const LoraAdapter& adapter, bool trainable);

  bool trainable() const;
  void show(gpu::Recorder& recorder, bool of_adapter);
  void clear_gradients(gpu::Recorder& recorder);
  HeadRowsGradient head_gradient() const;
  // dx (T, hidden) is the gradient at the embedding's output for these tokens (T).
  void add_embedding_gradient(gpu::Recorder& recorder, const gpu::Tensor& tokens, const gpu::Tensor& dx) const;
  std::vector<gpu::Tensor> gradients() const;
  void update(gpu::Recorder& recorder, const gpu::Tensor& norm_and_factor, const AdamWRule& rule);

  // As they are now, into the adapter.
  void read_rows(gpu::Device& device, LoraAdapter& adapter) const;
  // By PEFT's name of the rows: their gradient, empty where there is none of this name.
  gpu::Tensor gradient_named(std::string_view name) const;
  // Both moments of AdamW, exp_avg.NAME and exp_avg_sq.NAME.
  std::vector<std::pair<std::string, gpu::Tensor>> moments() const;

  static std::uint64_t bytes(const ModelConfig& config, const LoraConfig& lora, bool trainable);

 private:
  bool is_tied_;
  std::optional<TokenRows> embedding_, head_;
};

}  // namespace nibble
