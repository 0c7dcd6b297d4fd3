#pragma once

#include "nibble/kernels/operand.h"

namespace nibble {

// Whether the adapter can do products in this way.
bool supports(const gpu::AdapterInfo&, ProductPath);

// The path that suits an adapter best: matrix, else f16; f32 on a processor, where it is as fast and exact.
ProductPath fastest_path(const gpu::AdapterInfo&);


// y(M, N) [=|+=] x(M, K) * w(N, K)^T: a frozen linear layer forward. x's row scales and w's scale are undone at the end. Sums
// are f32, in a fixed order. Any sizes; tensors larger than a binding are taken in slices.
struct ProductNT {
  ProductPath path;
  Operand x;
  Weight w;
  Tensor y;  // f32
  bool accumulate = false;
};
void record(gpu::Recorder&, const ProductNT&);

// y(M, K) [=|+=] x(M, N) * w(N, K): the same layer backward to its input.
struct ProductNN {
  ProductPath path;
  Operand x;
  Weight w;
  Tensor y;  // f32
  bool accumulate = false;
};
void record(gpu::Recorder&, const ProductNN&);

// y(N, K) += x(M, N)^T * w(M, K), in f32 arithmetic: the gradient of a trained weight. Sums run over rows in a fixed order.
struct ProductTN {
  Operand x, w;
  Tensor y;        // f32
  Tensor scratch;  // f32, product_tn_scratch elements; may be left out where that is 0
};
void record(gpu::Recorder&, const ProductTN&);

std::uint64_t product_tn_scratch(const gpu::Device&, std::uint32_t rows, std::uint32_t outputs, std::uint32_t inputs);

}  // namespace nibble
