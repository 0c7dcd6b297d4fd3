#pragma once

#include "nibble/model/activations.h"
#include "nibble/model/linear.h"
#include "nibble/model/rope.h"
#include "nibble/model/stream.h"

namespace nibble {

// What a pass gives a layer.
struct LayerContext {
  gpu::Recorder& recorder;
  const ModelConfig& config;
  const DeviceWeights& weights;
  const LinearContext& linear;
  const DeviceStream& stream;
  Rotation rotation;  // of this layer
  // Where the stream's first key goes in k_heads and v_heads, which may be longer than the stream (Hk, capacity, D): the rows
  // before it hold keys and values of earlier tokens, which the stream's bounds may let it see.
  std::uint32_t first_key = 0;
};

// The halves of a transformer layer of Qwen3 (transformers' Qwen3DecoderLayer): activations.middle = x + attention(norm(x)), then
// output = middle + mlp(norm(middle)). input (T, C) is read; it, middle and output are the residual stream.
void attention_forward(const LayerContext& context, std::uint32_t layer, const Tensor& input, LayerActivations& activations,
                       const Scratch& scratch);
void mlp_forward(const LayerContext& context, std::uint32_t layer, LayerActivations& activations, const Tensor& output);
// Fills what mlp_forward leaves for the backward pass, and no more: the layer's output is not written.
void recompute_mlp(const LayerContext& context, std::uint32_t layer, LayerActivations& activations);

// dx (T, C) holds the gradient at a half's output and receives that at its input. `input_gradient` false leaves dx as it
// is: below the first layer nothing learns.
void mlp_backward(const LayerContext& context, std::uint32_t layer, const LayerActivations& activations,
                  const Scratch& scratch, const Tensor& dx);
void attention_backward(const LayerContext& context, std::uint32_t layer, const Tensor& input,
                        const LayerActivations& activations, const Scratch& scratch, const Tensor& dx, bool input_gradient);

}  // namespace nibble
