#pragma once

#include "nibble/kernels/dropout.h"
#include "nibble/kernels/operand.h"

#include <optional>

namespace nibble {

// The products that Product* and Lora* are made of: f32 arithmetic on f32 or f16 elements, any sizes, tensors of any size.
// Every argument of one dispatch is a tensor of its own. Sums have a fixed order.
struct TiledProduct {
  Operand x;
  Operand w;  // its scale is used by record_tn alone
  Tensor y;   // f32
  float scale = 1.0f;
  bool accumulate = false;
  Dropout dropout = {};
  Tensor scratch = {};  // record_tn alone
  std::optional<gpu::AdapterType> tiles_for = {};  // tiles of another type of adapter than the one in use
};

// y(M, N) [=|+=] scale * dropout(x)(M, K) * w(N, K)^T
void record_nt(gpu::Recorder&, const TiledProduct&);

// y(M, K) [=|+=] dropout(scale * x(M, N) * w(N, K))
void record_nn(gpu::Recorder&, const TiledProduct&);

// y(N, K) += scale * x(M, N)^T * dropout(w)(M, K). Where M is large and y small, parts over M are summed into `scratch`
// and added up by a second pass.
void record_tn(gpu::Recorder&, const TiledProduct&);

// Elements of f32 that record_tn needs as scratch; 0 where it needs none.
std::uint64_t tn_scratch_size(gpu::AdapterType, std::uint32_t rows, std::uint32_t outputs, std::uint32_t inputs);

}  // namespace nibble
