#pragma once

#include "nibble/kernels/nf4.h"
#include "nibble/kernels/operand.h"

namespace nibble {

// The most rows that product_vec.wgsl takes.
constexpr std::uint32_t vec_rows = 8;

// y(M, N) [=|+=] x(M, K) * w(N, K)^T for M <= vec_rows, straight from NF4: generation, one or a few tokens at a time. f32
// arithmetic on exact values of the code book. K is a multiple of 8.
struct Nf4Vec {
  Tensor x;  // f32
  Nf4 w;
  Tensor y;  // f32
  bool accumulate = false;
};
void record(gpu::Recorder&, const Nf4Vec&);

// The same with a dense weight and an operand of its type: what ProductNT does for few rows. K is a multiple of 8.
struct DenseVec {
  Operand x;
  Weight w;
  Tensor y;
  bool accumulate = false;
};
void record(gpu::Recorder&, const DenseVec&);

}  // namespace nibble
