#pragma once

#include "nibble/kernels/lora.h"
#include "nibble/kernels/product.h"
#include "nibble/model/frozen_weights.h"
#include "nibble/weights/lora_weights.h"

namespace nibble {

// Dropout of the adapters' inputs; every adapted projection of every batch draws its own mask.
struct LoraDropout {
  float probability = 0.0f;
  std::uint32_t seed = 0;       // of this batch
  std::uint32_t first_row = 0;  // of a chunk of rows in the stream
};

// Each adapted projection of each batch has a stream of random numbers of its own.
inline std::uint32_t dropout_stream(std::uint32_t layer, Projection projection) {
  return layer * static_cast<std::uint32_t>(all_projections.size()) + static_cast<std::uint32_t>(projection);
}

// What the projections of all layers share.
struct LinearContext {
  ProductPath path;
  FrozenWeights* frozen;
  const LoraWeights* lora;  // null: the base alone
  Dora* dora;               // of such adapters, else null
  LoraDropout dropout;      // probability 0 outside training
};

struct LinearSite {
  std::uint32_t layer;
  Projection projection;
};

// y (T, out) = x W^T + scaling * dropout(x) A^T B^T, with DoRA times the gains, added to y where `accumulate`. h (T, rank) receives dropout(x) A^T.
struct LinearForward {
  LinearSite site;
  Operand x;  // (T, in)
  Tensor y;
  bool accumulate = false;
  Tensor h;
};
void record(gpu::Recorder& recorder, const LinearContext& context, const LinearForward& op);

// Of the forward pass h alone.
struct LinearNarrow {
  LinearSite site;
  Operand x;
  Tensor h;
};
void record(gpu::Recorder& recorder, const LinearContext& context, const LinearNarrow& op);

// What the backward pass of DoRA's adapters reads and needs room for.
struct LinearDora {
  Tensor y;                      // (T, out) what the forward pass gave, with the bias; left out: computed again
  Tensor bias;                   // of which the projection's begins at bias_first; or none
  std::uint32_t bias_first = 0;
  Tensor y_room;                 // (T, out), where y is left out
  Tensor db_room;                // (at least out * rank)
};

// Adds to the gradients of A and B, and gives dx (T, in) = dy W + scaling * dropout'(dy B A), added where `accumulate`.
struct LinearBackward {
  LinearSite site;
  Operand x, dy;  // (T, in), (T, out)
  Tensor h;       // of the forward pass
  Tensor dh;      // (T, rank) room
  Tensor lora_scratch;
  Tensor dx;      // left out: the adapters' gradients alone
  bool accumulate = false;
  LinearDora dora = {};
};
void record(gpu::Recorder& recorder, const LinearContext& context, const LinearBackward& op);

}  // namespace nibble
