#pragma once

#include "nibble/kernels/qkv_attention.h"
#include "nibble/model/dora.h"
#include "nibble/model/expert_mlp.h"
#include "nibble/model/rope.h"
#include "nibble/model/stream.h"
#include "nibble/weights/config.h"
#include "nibble/weights/device_weights.h"
#include "nibble/weights/joint.h"
#include "nibble/weights/lora_weights.h"

namespace nibble {

// A joint's weights as the one matrix that they lie as.
Nf4 joint_weight(const LayerProjections& projections, Joint joint);

// The layers for one or a few new tokens: weights are read straight from NF4, in f32 arithmetic, and what stands between two
// products is part of them, as far as it can be: norm, SwiGLU, the residual stream, the adapters.
class DecodeLayers {
 public:
  // `rank` of the adapters; 0: none. Passes have at most `most_tokens`.
  DecodeLayers(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights, std::uint32_t rank,
               std::uint32_t most_tokens);

  // Whether the sizes allow it.
  static bool fits(const ModelConfig& config);
  // And whether the weights of each joint have one code book.
  static bool fits(const ModelConfig& config, const DeviceWeights& weights);
  static std::uint64_t bytes(const gpu::Device& device, const ModelConfig& config, std::uint32_t rank, std::uint32_t most_tokens);

  // One layer. Keys and values (Hk, capacity, D) of earlier tokens end before row `first_key`, where those of the stream go; or
  // the stream has one token each of several texts, whose keys end where key_end says (QkvAttention::apart).
  struct Pass {
    gpu::Recorder& recorder;
    const DeviceStream& stream;
    const Rotations& rotations;
    const LoraWeights* lora;  // null: the base alone
    Dora* dora;               // of such adapters, else null
    std::uint32_t first_key, most_keys;
    bool apart;
  };
  void forward(const Pass& pass, std::uint32_t layer, const gpu::Tensor& input, const gpu::Tensor& output, const gpu::Tensor& keys,
               const gpu::Tensor& values) const;

 private:
  struct Room {
    gpu::Tensor qkv, attention, log_sum_exp, middle, hidden;  // (T, (H + 2 Hk) D), (T, H D), (H, T), (T, C), (T, I)
    gpu::Tensor lora_h;                                       // (T, 3 rank)
  };
  template <typename Make>
  static void visit(Room& room, const ModelConfig& config, std::uint32_t tokens, std::uint32_t rank, const Make& make);
  static QkvAttentionShape attention_shape(const ModelConfig& config, std::uint32_t most_tokens);

  ModelConfig config_;
  const DeviceWeights& weights_;
  std::uint32_t rank_;
  Room room_;
  QkvAttentionRoom attention_;
  std::optional<ExpertMlp> experts_;  // where the model has them
};

}  // namespace nibble
