#pragma once

#include "nibble/kernels/expert_matrix.h"
#include "nibble/model/layers.h"

#include <array>
#include <vector>

namespace nibble {

// Whether a projection is one of experts, which lie one below the other and are read so, decoded or not.
inline bool is_of_experts(const ModelConfig& config, Projection p) {
  return config.has_experts() && (p == Projection::gate || p == Projection::up || p == Projection::down);
}

// The MLP of layers that are mixtures of experts (transformers' Qwen3MoeSparseMoeBlock), where others have gate, up and down
// projections: with n = norm(x) and w the router's weights of the chosen experts, y = x + sum of w_e down_e(silu(gate_e n) up_e n).
// Which experts a token has is known to the device alone: its rows are sorted by expert there, and products go over these. The
// router is f32 on every path; products of many rows go through matrix units on theirs, others and the adapters are f32.
class ExpertMlp {
 public:
  ExpertMlp(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights, const LayersOptions& options);

  // What a pass gives a layer.
  struct At {
    gpu::Recorder& recorder;
    const LoraWeights* lora;  // null: the base alone
    std::uint32_t layer;
  };
  void forward(const At& at, const Tensor& x, const Tensor& y) const;
  // What forward leaves for the backward pass, and no more.
  void recompute(const At& at, const Tensor& x) const;
  // dx (T, C) holds the gradient at y and receives that at x; gradients are added to the adapters'.
  void backward(const At& at, const Tensor& x, const Tensor& dx) const;

  static LayersBytes bytes(const gpu::Device& device, const ModelConfig& config, const LayersOptions& options);

 private:
  // Of T tokens, with S = T k rows.
  struct Kept {
    Tensor inv_rms, logits;       // (T), (T, E)
    Tensor expert, weight;        // (T, k)
    Tensor gate, up;              // (S, I)
    std::array<Tensor, 3> lora_h;  // (S, r) of gate, up and down
  };
  // Of a chunk of tokens, shared by all layers.
  struct Room {
    Tensor normed, d_normed;      // (T, C)
    Tensor z, dz, d_up;           // (S, I)
    Tensor rows;                  // (S, C)
    Tensor d_weight, d_logits;    // (T, k), (T, E)
    Tensor lora_dh;               // (S, r)
    Operand packed;               // on matrix units: what a product reads, as elements
  };
  // Some of a pass's tokens.
  struct Chunk;
  struct Rows;
  struct Input;

  template <typename Make>
  static void visit(Kept& kept, const ModelConfig& config, const LayersOptions& options, std::uint32_t tokens, const Make& make);
  template <typename Make>
  static void visit(Room& room, const ModelConfig& config, const LayersOptions& options, std::uint32_t tokens, const Make& make);

  template <typename Visit>
  void for_each_chunk(const At& at, const Tensor& x, Visit&& visit) const;
  bool adapts(const At& at, Projection p) const;
  void multiply(const Chunk& chunk, Projection p, MatrixLayout layout, const Rows& x, const Tensor& y, bool accumulate) const;
  void norm(const Chunk& chunk) const;
  void up_to_gate(Chunk& chunk) const;
  void sort(Chunk& chunk) const;
  void weigh(const Chunk& chunk) const;
  void narrow(const Chunk& chunk, const Input& input) const;
  void project(const Chunk& chunk, const Input& input, const Tensor& y) const;
  void gradients(const Chunk& chunk, const Input& input, const Rows& dy, const Tensor& dx, bool accumulate) const;

  ModelConfig config_;
  const DeviceWeights& weights_;
  LayersOptions options_;
  std::uint32_t chunk_tokens_;
  std::vector<Kept> kept_;  // of each layer
  Room room_;
  ExpertRowsRoom sort_room_;
};

inline ExpertMlp::At experts_at(const LayerPass& pass, std::uint32_t layer) { return {pass.recorder, pass.lora, layer}; }

}  // namespace nibble
