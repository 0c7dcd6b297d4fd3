#pragma once

#include "nibble/kernels/operand.h"

namespace nibble {

// The most rows that product_vec.wgsl and nf4_vec.wgsl take.
constexpr std::uint32_t vec_rows = 8;

// y(M, N) [=|+=] x(M, K) * w(N, K)^T for M <= vec_rows, f32 arithmetic: what ProductNT does for few rows. K is a multiple of 8.
struct DenseVec {
  Operand x;
  Weight w;
  Tensor y;
  bool accumulate = false;
};
void record(gpu::Recorder&, const DenseVec&);

}  // namespace nibble
