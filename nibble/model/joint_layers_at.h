#pragma once

#include "nibble/model/joint_layers.h"

namespace nibble {

// Of the sources of JointLayers alone.
struct JointLayers::At {
  const LayerPass& pass;
  std::uint32_t layer;
  gpu::Recorder& rec;
  const LayerWeights& weights;
  JointActivations kept;
  JointRoom room;
  std::uint32_t tokens = 0, first_row = 0;  // of the stream; all but of a chunk of the MLP

  const Tensor& lora_h(Joint joint) const { return kept.lora_h[static_cast<std::size_t>(joint)]; }
  Tensor lora_dh(const LoraGroup& group) const { return room.lora_dh.view({tokens, group.shape.width()}); }
};

}  // namespace nibble
