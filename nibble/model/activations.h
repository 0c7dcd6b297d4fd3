#pragma once

#include "nibble/kernels/operand.h"
#include "nibble/model/activation_choice.h"
#include "nibble/weights/config.h"

#include <array>
#include <vector>

namespace nibble {

// Sizes of one model's buffers: T tokens at most, C hidden, H and Hk heads of D, I intermediate, r rank.
struct ActivationShape {
  std::uint32_t tokens = 0;
  const ModelConfig* config = nullptr;
  ProductPath path = ProductPath::f32;
  std::uint32_t rank = 0;  // 0: no adapters
  bool use_dora = false;
  std::uint32_t mlp_chunk = 0;  // see LayersOptions

  std::uint32_t mlp_tokens() const { return mlp_chunk > 0 && mlp_chunk < tokens ? mlp_chunk : tokens; }
};

// What the forward pass of a layer leaves for its backward pass.
struct LayerActivations {
  // Of attention.
  Operand attention_in;                     // (T, C) after the first norm
  Tensor attention_in_inv_rms;              // (T)
  Tensor q, k;                              // (T, H*D), (T, Hk*D) before their norms
  Tensor q_inv_rms, k_inv_rms;              // (T, H), (T, Hk)
  Tensor q_heads, k_heads, v_heads;         // (H, T, D), (Hk, T, D) twice
  Tensor attention, log_sum_exp;            // (T, H*D), (H, T)
  Operand attention_packed;                 // (T, H*D); in f32 the attention itself
  Tensor middle;                            // (T, C) the residual stream between attention and MLP
  // Of the MLP.
  Operand mlp_in;                           // (T, C) after the second norm
  Tensor mlp_in_inv_rms;                    // (T)
  Tensor gate, up;                          // (T, I)
  Operand mlp_hidden;                       // (T, I) silu(gate) * up
  // Of both.
  std::array<Tensor, 7> lora_h;             // (T, r) by Projection
};

// Of each layer, by its choice; with chunks of the MLP attention's alone.
std::vector<LayerActivations> make_layer_activations(gpu::Device& device, const ActivationShape& shape,
                                                     const ActivationChoices& choices);

// Views of the first `tokens` tokens.
LayerActivations first_tokens(const LayerActivations& activations, const ModelConfig& config, std::uint32_t tokens);

// The MLP's of a chunk, shared by all layers; and views of them for its rows [begin, end), with what they take of all tokens'.
LayerActivations make_mlp_chunk(gpu::Device& device, const ActivationShape& shape);
LayerActivations chunk_of(const LayerActivations& of, const LayerActivations& mlp_chunk, const ModelConfig& config, std::uint32_t begin,
                          std::uint32_t end);

// Room that the passes of all layers share.
struct Scratch {
  Tensor v;                                   // (T, Hk*D) before it is laid out by heads
  Operand dy;                                 // (T, C) storage of the residual stream's gradient; none in f32
  Tensor d_hidden;                            // (T, I), T here of a chunk of the MLP
  Operand d_gate, d_up;                       // (T, I), likewise
  Tensor d_normed;                            // (T, C)
  Tensor d_attention;                         // (T, H*D)
  Tensor attention_delta;                     // (H, T) row sums of o * do
  Tensor dq_heads, dk_heads, dv_heads;        // as the heads above
  Tensor dq, dk, dv;                          // (T, H*D), (T, Hk*D) twice
  Operand dq_packed, dk_packed, dv_packed;
  Tensor lora_dh;                             // (T, r)
  Tensor lora_scratch;                        // partial sums of the adapters' gradients
  Tensor dora_y, dora_db;                     // (T, C), (widest output * r); of DoRA alone
};

// `trainable`: also the room of the backward pass.
Scratch make_scratch(gpu::Device& device, const ActivationShape& shape, bool trainable);
Scratch first_tokens(const Scratch& scratch, const ModelConfig& config, std::uint32_t tokens);

// Bytes that the functions above take.
std::uint64_t layer_activation_bytes(const ActivationShape& shape, LayerPart part, std::uint32_t layers);  // or chunks
std::uint64_t scratch_bytes(const gpu::Device& device, const ActivationShape& shape, bool trainable);

}  // namespace nibble
