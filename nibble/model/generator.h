#pragma once

#include "nibble/gpu/readback.h"
#include "nibble/model/decode_layers.h"
#include "nibble/model/head.h"
#include "nibble/model/layers.h"
#include "nibble/model/model_state.h"

#include <optional>
#include <span>
#include <vector>

namespace nibble {

struct GeneratorOptions {
  ProductPath path = ProductPath::f32;  // of a state, its own
  std::uint32_t capacity = 4096;  // tokens of one text, prompt and answer; cut to what the model's positions allow
  std::uint32_t piece = 0;        // most tokens of a prompt computed at a time; 0: by the adapter
};

// A causal language model that continues a text. It keeps keys and values of the tokens that it has seen, so that only what
// is new is computed; layers and head are those of training.
class Generator {
 public:
  // Works on the state's weights and adapters, with its path; the state must outlive it.
  Generator(const ModelState& state, const GeneratorOptions& options);
  Generator(const Generator&) = delete;
  Generator& operator=(const Generator&) = delete;

  // Logits (vocab) of the token that follows `tokens`. Of the last call's tokens the common beginning is not computed again.
  // Throws DataError for no token, more than capacity(), or an id beyond the vocabulary. The span holds until the next call.
  std::span<const float> logits(std::span<const std::uint32_t> tokens);

  // With the adapters (as at first) or without. A change forgets what has been seen.
  void use_adapter(bool use);

  std::uint32_t capacity() const { return capacity_; }
  // Tokens whose keys and values are kept.
  std::uint32_t seen() const { return static_cast<std::uint32_t>(seen_.size()); }
  // Tokens computed so far, over all calls.
  std::uint64_t computed() const { return computed_; }

  // Bytes on the device beside the weights.
  static std::uint64_t bytes(const gpu::Device& device, const ModelConfig& config, const GeneratorOptions& options,
                             std::uint32_t rank);

 private:
  DeviceStream upload(std::span<const std::uint32_t> piece);
  Tensor run_layers(gpu::Recorder& recorder, const DeviceStream& stream, bool few);  // few: through `steps_`

  gpu::Device& device_;
  ModelConfig config_;
  const DeviceWeights& weights_;
  LoraMirror* adapters_;  // of the state; null without
  std::uint64_t adapters_version_ = 0;  // that what has been seen was computed with
  std::uint32_t capacity_;
  Head head_;
  const LoraWeights* lora_ = nullptr;   // in use
  std::uint32_t most_tokens_;           // of a piece of a prompt
  std::unique_ptr<Layers> pieces_;
  std::optional<DecodeLayers> steps_;   // of a few tokens; empty where sizes do not allow it, and pieces serve
  std::uint32_t most_steps_ = 0;
  std::vector<KeyCache> keys_;  // by layer
  Tensor stream_room_, segment_begin_;
  Tensor rope_;
  std::array<Tensor, 2> residual_;
  std::vector<std::uint32_t> seen_;
  gpu::Readback readback_;    // of the logits
  std::vector<float> logits_;
  std::uint64_t computed_ = 0;
};

}  // namespace nibble
