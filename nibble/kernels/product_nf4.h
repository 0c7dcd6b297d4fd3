#pragma once

#include "nibble/kernels/nf4.h"
#include "nibble/kernels/operand.h"

namespace nibble {

// Products with a frozen weight W(N, K) straight from NF4, on a processor: the values are those of the code book, all
// arithmetic is f32, sums have a fixed order. M is any number.
struct Nf4Product {
  Tensor x;  // f32
  Nf4 w;
  Tensor y;  // f32
  bool accumulate = false;
  // A low-rank term on top: `left` (M, R) f32 and `right` f32, (N, R) for NT and (R, K) for NN; R is a multiple of 4.
  Tensor left = {}, right = {};
  float scaling = 1.0f;
};

// y(M, N) [=|+=] x(M, K) * W^T + scaling * left * right^T
void record_nt(gpu::Recorder&, const Nf4Product&);

// y(M, K) [=|+=] x(M, N) * W + scaling * left * right
void record_nn(gpu::Recorder&, const Nf4Product&);

// Whether the adapter is a processor that the kernel suits, and the weight (N, K) has sizes that it takes.
bool nf4_product_fits(const gpu::Device&, std::uint32_t outputs, std::uint32_t inputs);

}  // namespace nibble
