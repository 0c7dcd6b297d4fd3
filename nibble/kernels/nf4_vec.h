#pragma once

#include "nibble/kernels/nf4.h"
#include "nibble/kernels/operand.h"

#include <array>
#include <optional>

namespace nibble {

// A projection of a few rows straight from NF4, with what stands before and after it in a layer: generation, one or a few
// tokens at a time, which is bound by reading the weight. f32 arithmetic on exact values of the code book, sums in a fixed
// order. K is a multiple of 64, M at most vec_rows.

// x before a product: RMSNorm (rms_norm.h), or as it is where `weight` is empty.
struct VecInput {
  Tensor x;       // (M, K)
  Tensor weight;  // (K)
  float eps = 1e-6f;
};

// Adapters of up to three projections that lie side by side in a weight; empty where there is none.
struct VecLora {
  std::uint32_t rank = 0;
  std::array<float, 3> scaling{1.0f, 1.0f, 1.0f};  // of each
  std::array<Tensor, 3> b{};             // (outputs, rank)
  std::array<std::uint32_t, 3> ends{};   // the output where each projection ends; N where there are fewer
  Tensor h;                              // (M, projections * rank), of LoraVec; empty: no adapters
};

// y = input w^T + scaling * h b^T, or on top of `plus`.
struct Nf4Vec {
  VecInput input;
  Nf4 w;           // (N, K)
  Tensor y;        // (M, N)
  Tensor plus = {};  // (M, N), another tensor
  VecLora lora = {};
  std::optional<gpu::AdapterType> kernel_for = {};  // of another type of adapter than the one in use, for tests
  std::uint32_t enough_lanes = 0;                   // of one product, that occupy the adapter; for tests; 0: by the adapter
};
void record(gpu::Recorder&, const Nf4Vec&);

// y = silu(g) * u of the same product (g, u), whose first half of rows is g.
struct Nf4VecSwiGlu {
  VecInput input;
  Nf4 w;           // (2 I, K)
  Tensor y;        // (M, I)
  VecLora lora = {};
  std::optional<gpu::AdapterType> kernel_for = {};
  std::uint32_t enough_lanes = 0;
};
void record(gpu::Recorder&, const Nf4VecSwiGlu&);

// h(m, i * rank + r) = input a_i^T of up to three projections; columns of those without an adapter are any finite values.
struct LoraVec {
  VecInput input;
  std::uint32_t rank = 0, projections = 1;
  std::array<Tensor, 3> a{};  // (rank, K)
  Tensor h;                   // (M, projections * rank)
  std::optional<gpu::AdapterType> kernel_for = {};
};
void record(gpu::Recorder&, const LoraVec&);

}  // namespace nibble
