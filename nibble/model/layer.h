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

// One transformer layer of Qwen3 (transformers' Qwen3DecoderLayer): x + attention(norm(x)), then y + mlp(norm(y)).
// input (T, C) is read, output (T, C) written; both are the residual stream.
void layer_forward(const LayerContext& context, std::uint32_t layer, const Tensor& input, LayerActivations& activations,
                   const Scratch& scratch, const Tensor& output);

// Fills what one half of layer_forward leaves for the backward pass, and no more: the layer's output is not written. The MLP's
// half reads activations.middle.
void recompute_attention(const LayerContext& context, std::uint32_t layer, const Tensor& input, LayerActivations& activations,
                         const Scratch& scratch);
void recompute_mlp(const LayerContext& context, std::uint32_t layer, LayerActivations& activations);

// dx (T, C) holds the gradient at the layer's output and receives that at its input. `input_gradient` false leaves dx as it
// is: below the first layer nothing learns.
void layer_backward(const LayerContext& context, std::uint32_t layer, const Tensor& input,
                    const LayerActivations& activations, const Scratch& scratch, const Tensor& dx, bool input_gradient);

// The MLP of a layer: the part of the two above from activations.middle on, which holds its input (T, C).
void mlp_forward(const LayerContext& context, std::uint32_t layer, LayerActivations& activations, const Tensor& output);
void mlp_backward(const LayerContext& context, std::uint32_t layer, const LayerActivations& activations,
                  const Scratch& scratch, const Tensor& dx);

}  // namespace nibble
