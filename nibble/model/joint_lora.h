#pragma once

#include "nibble/kernels/lora_pack.h"
#include "nibble/model/joint_weights.h"
#include "nibble/weights/lora_weights.h"

#include <array>
#include <vector>

namespace nibble {

LoraGroupShape joint_lora_shape(const ModelConfig& config, Joint joint, std::uint32_t rank);

// What JointLora takes of the device's memory.
std::uint64_t joint_lora_bytes(const ModelConfig& config, std::uint32_t rank, bool use_dora, bool one_room);

// The adapters as matrix units read them, by joint weights: those of all layers, or with one room those of one layer after the other.
class JointLora {
 public:
  // `lora` must stay; its buffers are read whenever `pack` is recorded.
  JointLora(gpu::Device& device, const ModelConfig& config, const JointWeights& weights, const LoraWeights& lora, bool one_room);

  // Of all layers at once; of one where adapters of DoRA have their gains found layer by layer, or all have one room.
  void pack(gpu::Recorder& recorder) const { record(recorder, packs_.front()); }
  void pack(gpu::Recorder& recorder, std::uint32_t layer) const;
  // Null where none of its projections has an adapter.
  const LoraGroup* group(std::uint32_t layer, Joint joint) const;

  // What the backward pass adds to: of each member that has an adapter.
  struct Gradients {
    std::array<Tensor, 3> a, b;
  };
  // Elements of room in which the gradients of each member's B can lie one after the other.
  static std::uint32_t b_room(const LoraGroupShape& shape);
  // The same with B's in such a room.
  Gradients gradients(std::uint32_t layer, Joint joint, const Tensor& room) const;
  Gradients gradients(std::uint32_t layer, Joint joint) const;

 private:
  const LoraWeights& lora_;
  std::size_t joints_;           // of a layer
  bool by_layer_, one_room_;
  std::vector<LoraPack> packs_;  // one with a group each, or one a layer
};

}  // namespace nibble
