#pragma once

#include "nibble/kernels/qkv_attention.h"
#include "nibble/model/joint_lora.h"
#include "nibble/model/layers.h"

#include <array>
#include <vector>

namespace nibble {

// What the forward pass of a layer leaves for its backward pass: T tokens, C hidden, H and Hk heads of D, I intermediate, R
// the padded ranks of a joint weight's adapters. Operands are f16.
struct JointActivations {
  // Of attention.
  Operand qkv;                     // (T, (H + 2 Hk) * D)
  Operand attention;               // (T, H * D)
  Tensor log_sum_exp;              // (H, T)
  Tensor middle;                   // (T, C) the residual stream between attention and MLP
  // Of what JointRoom has of the forward pass: the scales of its rows, (T), and what the norm multiplied by.
  Tensor attention_in_scale, attention_in_inv_rms;
  // Of the MLP.
  Operand gate_up;                 // (T, 2 I)
  Tensor mlp_in_scale, mlp_in_inv_rms, hidden_scale;
  // Of both.
  std::array<Tensor, 4> lora_h{};  // (T, R) f16 by Joint
};

// Room that the passes of all layers share. What attention's own kernels neither find nor leave has the same memory as what lies
// between those (AlternatingRoom): of all that, only attention_in, d_narrow and d_wide are written before attention's kernels and read
// behind them, or the other way round, be it in a layer's forward pass or in its backward pass. dy and the sums in lora_scratch, which go
// from layer to layer, are given up or added up before attention.
struct JointRoom {
  // What is cheaper to compute again than to keep: f16 data, whose scales are kept.
  Tensor attention_in, mlp_in;                        // (T, C) normed
  Tensor hidden;                                      // (T, I) silu(gate) * up
  JointActivations mlp;                               // of a chunk of rows (LayersOptions::mlp_chunk), which `hidden` and `mlp_in` have too
  QkvAttentionRoom attention;
  Tensor lora_scratch;
  Tensor product_scratch;                             // of products that are split; empty where none is
  // Of the backward pass.
  Operand dy;                      // (T, C) the residual stream's gradient
  Operand d_narrow;                // (T, I) gradient of `hidden`, then (T, H * D) of `attention`: see narrowed
  Operand d_wide;                  // (T, 2 I) gradient of `gate_up`, then (T, (H + 2 Hk) * D) of `qkv`: likewise
  Tensor d_normed;                 // (T, C)
  Tensor lora_dh;                  // (T, the largest R) f16
  // With dropout of the adapters' inputs, whose gradients do not go through matrix units.
  Tensor d_inputs;                 // (T, the larger of I and H * D)
  Tensor lora_dh_values;           // (T, rank)
  // With DoRA.
  Tensor dora_y;                   // (T, C)
  Tensor dora_db;                  // the gradients of gain * B of a joint weight
};

// Of each layer, by its choice.
std::vector<JointActivations> make_joint_activations(gpu::Device& device, const ModelConfig& config, const LayersOptions& options);
JointRoom make_joint_room(gpu::Device& device, const ModelConfig& config, const LayersOptions& options);

// Views of the first `tokens` tokens; config and options are those of making.
JointActivations first_tokens(const JointActivations& activations, const ModelConfig& config, const LayersOptions& options,
                              std::uint32_t tokens);
JointRoom first_tokens(const JointRoom& room, const ModelConfig& config, const LayersOptions& options, std::uint32_t tokens);

// The rows of `of` that a chunk [begin, end) of the MLP takes of all tokens', and for the rest the room of a chunk.
JointActivations chunk_of(const JointActivations& of, const JointRoom& room, const ModelConfig& config, const LayersOptions& options,
                          std::uint32_t begin, std::uint32_t end);
JointRoom chunk_of(const JointRoom& room, const ModelConfig& config, const LayersOptions& options, std::uint32_t begin, std::uint32_t end);

// Memory that has other columns at other times, as an operand of so many.
Operand narrowed(const Operand& operand, std::uint32_t columns);

// The rows by which a joint weight's products of so many tokens are planned (ProductNT::plan_rows).
std::uint32_t joint_plan_rows(const LayersOptions& options, Joint joint, std::uint32_t tokens);

// Bytes that the functions above take.
std::uint64_t joint_activation_bytes(const ModelConfig& config, const LayersOptions& options);  // of all layers
std::uint64_t joint_room_bytes(const gpu::Device& device, const ModelConfig& config, const LayersOptions& options);

}  // namespace nibble
