#pragma once

#include "nibble/model/head.h"
#include "nibble/model/layer_inputs.h"
#include "nibble/model/layers.h"
#include "nibble/model/model_state.h"
#include "nibble/weights/layer_stream.h"

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace nibble {

struct ModelOptions {
  ProductPath path = ProductPath::f32;  // of a state, its own
  std::vector<Residency> residency = {};  // by layer; empty: all resident. Which are streamed is the state's to say
  StreamOptions stream = {};              // of a plan; a state has its own, but for how a head on the host is brought
  ActivationChoices activations = {};   // what the backward pass computes again
  std::uint32_t mlp_chunk = 0;          // see LayersOptions; of training
  bool one_decoded_room = false;        // see LayersOptions
  std::uint32_t offloaded_inputs = 0;   // layers; see LayerInputsOptions
  std::uint32_t max_tokens = 0;         // of one batch
  std::uint32_t max_labels = 0;
  std::uint32_t head_chunk = 0;         // see HeadOptions::chunk_rows
  std::uint32_t head_slice = 0;         // see HeadOptions::slice_rows
  bool trainable = true;                // room for the backward pass
  bool lora_dropout = false;            // training drops inputs of the adapters
};

// Noise on the embeddings while training (nibble/kernels/neftune.h).
struct NeftuneNoise {
  float alpha = 0.0f;
  std::uint32_t seed = 0;  // of this batch
};

LayersOptions layers_options(const ModelOptions& options, std::uint32_t rank, bool expert_adapters, bool use_dora = false);
// `base_head`: whether the base's own is loaded.
HeadOptions head_options(const gpu::AdapterInfo& info, const ModelConfig& config, const ModelOptions& options, bool base_head);
LayerInputsOptions layer_inputs_options(const ModelOptions& options);

// What training adds to a pass of one batch.
struct TrainingNoise {
  LoraDropout dropout = {};
  NeftuneNoise neftune = {};
};

// A causal language model with adapters on the device: forward and backward over token streams. Nothing is read back here.
class Model {
 public:
  // Works on the state's weights and adapters, with its path; the state must outlive it.
  Model(const ModelState& state, const ModelOptions& options);
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  gpu::Device& device() { return device_; }
  const ModelConfig& config() const { return config_; }
  const ModelOptions& options() const { return options_; }
  // The adapters on the device; null where there are none or they are not used.
  const LoraWeights* lora() const { return lora_; }
  // Rows of embedding and head that are the adapters' own; null where they have none.
  TrainedTokens* tokens() const { return tokens_; }
  // With the adapters and their head, as at first, or without.
  void use_adapter(bool use);

  DeviceStream upload(gpu::Recorder& recorder, const TokenStream& stream) const { return streams_.upload(recorder, stream); }

  // The residual stream (T, C) after the last layer.
  Tensor forward(gpu::Recorder& recorder, const DeviceStream& stream) { return run_layers(pass(recorder, stream), {}, LayerOrder::round); }
  Head::Loss loss(gpu::Recorder& recorder, const DeviceStream& stream);
  // The same of the base alone, with the adapters switched off.
  Head::Loss base_loss(gpu::Recorder& recorder, const DeviceStream& stream);
  // Adds the gradients that the options ask for to those of the adapters and of their rows of tokens; with d_head (vocab, C) to those of the head too.
  Head::Loss loss_and_gradients(gpu::Recorder& recorder, const DeviceStream& stream, const LossOptions& loss,
                                const TrainingNoise& noise = {}, const Tensor& d_head = {});
  // Logits (R, vocab) of some rows of what forward() returned.
  Tensor logits(gpu::Recorder& recorder, const Tensor& residual, const Tensor& rows, std::uint32_t count) {
    return head_.logits(recorder, residual, rows, count);
  }
  std::uint32_t max_logit_rows() const { return head_.chunk_rows(); }

  // One layer alone, or the MLP of one: input and output (T, C) are the residual stream before and after it. Backward comes
  // after forward of the same layer; dx (T, C) holds the gradient at the output and receives that at the input, and gradients
  // are added to the adapters'.
  void forward_layer(gpu::Recorder& recorder, const DeviceStream& stream, std::uint32_t layer, const Tensor& input,
                     const Tensor& output);
  void backward_layer(gpu::Recorder& recorder, const DeviceStream& stream, std::uint32_t layer, const Tensor& input,
                      const Tensor& dx);
  void forward_mlp(gpu::Recorder& recorder, const DeviceStream& stream, std::uint32_t layer, const Tensor& input,
                   const Tensor& output);
  void backward_mlp(gpu::Recorder& recorder, const DeviceStream& stream, std::uint32_t layer, const Tensor& dx);

  struct NonFinitePlace {
    std::string where;  // "the MLP of layer 3"
    std::uint32_t token;  // of the batch
  };
  // Computes the batch again, one layer at a time, and says where the first value that is not finite appears.
  std::optional<NonFinitePlace> find_nonfinite(const DeviceStream& stream);

 private:
  LayerPass pass(gpu::Recorder& recorder, const DeviceStream& stream, const LoraDropout& dropout = {});
  // LayerOrder::up where a backward pass is to follow.
  Tensor run_layers(const LayerPass& pass, const NeftuneNoise& noise, LayerOrder order);
  void embed(gpu::Recorder& recorder, const DeviceStream& stream);

  gpu::Device& device_;
  ModelConfig config_;
  const DeviceWeights& weights_;
  ModelOptions options_;
  LoraMirror* adapters_;     // of the state; null without
  const LoraWeights* lora_;  // in use
  TrainedTokens* tokens_;
  std::unique_ptr<Layers> layers_;
  StreamBuffers streams_;
  Head head_;
  Rotations rotations_;
  LayerInputs inputs_;
  Tensor dx_;  // (T, C)
};

}  // namespace nibble
