#pragma once

#include "nibble/kernels/expert_product.h"
#include "nibble/kernels/matrix_tuning.h"

#include <optional>

namespace nibble {

// Products of experts on the adapter's matrix units: f16 operands with row scales, f32 accumulators, NF4 decoded on its way to
// workgroup memory. The tile's block_m is that of the rows' tiles.
struct ExpertMatrixProduct {
  Operand x;  // f16: (S, ...), or where `by_token` (T, ...)
  Nf4 w;      // (E N, K), N and K multiples of 8
  float largest = 1.0f;  // of w's absmax
  ExpertRows rows;
  Tensor y;  // (S, ...) f32
  bool by_token = false;
  bool accumulate = false;
};

// y(S, N) [=|+=] x(., K) * W^T
void record_matrix_nt(gpu::Recorder&, const ExpertMatrixProduct&);

// y(S, K) [=|+=] x(., N) * W
void record_matrix_nn(gpu::Recorder&, const ExpertMatrixProduct&);

// The tile for so many slots of so many experts; empty where the adapter has no matrices, or where most of a tile's rows would be
// empty: rows of experts are then few, and reading their weights is what counts.
std::optional<MatrixTile> expert_matrix_tile(const gpu::AdapterInfo&, std::uint32_t experts, std::uint32_t slots);

}  // namespace nibble
