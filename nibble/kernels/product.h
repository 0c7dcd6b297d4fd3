#pragma once

#include "nibble/kernels/operand.h"

#include <span>

namespace nibble {

// Whether the adapter can do products in this way.
bool supports(const gpu::AdapterInfo&, ProductPath);

// The path that suits an adapter best: matrix, else f16; f32 on a processor, where it is as fast and exact.
ProductPath fastest_path(const gpu::AdapterInfo&);

// Whether the adapter has matrices for a weight (N, K): N and K are multiples of 8. Else the matrix path does f16's work.
bool matrix_fits(const gpu::Device&, std::uint32_t outputs, std::uint32_t inputs);

// Whether products of the path through such a weight can write f16, in both directions.
bool f16_outputs_fit(const gpu::Device&, ProductPath, std::uint32_t outputs, std::uint32_t inputs);

inline constexpr std::uint32_t most_tail_rank = 256;

// Low-rank terms of up to three projections that lie side by side in w, added to the sums of the matrix path in the units of
// x.data and w.data: one more run of the inner dimension. r16 is a multiple of 16, at most most_tail_rank, R that of all
// projections.
// NT: y(m, n) gets sum over j < r16 of left(m, p(n) r16 + j) right(n, j), p(n) the projection of column n;
// NN: y(m, k) gets sum over i < R of left(m, i) right(i, k).
struct LoraTail {
  Tensor left;                           // (M, R) f16; empty: no tail
  Tensor right;                          // f16: (N, r16) in NT, (R, K) in NN
  std::array<std::uint32_t, 3> ends{};   // NT: the column where each projection ends; N where there are fewer
};

// Whether projections that end at these columns suit the kernel's blocks.
bool lora_tail_fits(const gpu::Device&, std::uint32_t outputs, std::uint32_t inputs, std::span<const std::uint32_t> ends);

// y(M, N) [=|+=] x(M, K) * w(N, K)^T: a frozen linear layer forward. x's row scales and w's scale are undone at the end. Sums
// are f32, in a fixed order. Any sizes; tensors larger than a binding are taken in slices.
struct ProductNT {
  ProductPath path;
  Operand x;
  Weight w;
  Tensor y;  // f32; or f16, where y_scale is given
  bool accumulate = false;
  Tensor y_scale = {};  // (M), f32: y gets the sums * 2^-6, y_scale = x.scale * w.scale * 2^6. The matrix path alone
  Tensor plus = {};     // y = plus + product; f32 of y's shape, another tensor
  LoraTail lora = {};   // the matrix path alone
  Tensor scratch = {};  // f32, product_scratch elements, with which few blocks may split the inner dimension; may be shared
  // Planned as for so many rows, those of the largest batch, so that each batch takes the same kernels; 0: for x's own.
  std::uint32_t plan_rows = 0;
};
void record(gpu::Recorder&, const ProductNT&);

// What a product leaves of y(M, K), which is f32, for the kernel that reads y to add up: of blocks whose inner dimension was split y =
// scale * x_scale * the sum of their parts, in their order, as product_splits.wgsl has them. Other blocks stand in y.
struct SplitSums {
  Tensor partial;  // a part of the scratch; empty: all stands in y
  Tensor x_scale;  // (M)
  std::uint32_t whole = 0, splits = 0;  // blocks before the first one that was split; parts
  std::uint32_t blocks_down = 0, blocks_across = 0, band = 0, block_rows = 0, block_vectors = 0;
  float scale = 1.0f;

  explicit operator bool() const { return static_cast<bool>(partial); }
};

// y(M, K) [=|+=] x(M, N) * w(N, K): the same layer backward to its input.
struct ProductNN {
  ProductPath path;
  Operand x;
  Weight w;
  Tensor y;  // as in ProductNT
  bool accumulate = false;
  Tensor y_scale = {};
  Tensor plus = {};
  LoraTail lora = {};
  Tensor scratch = {};
  std::uint32_t plan_rows = 0;
  SplitSums* sums = nullptr;  // what may be left of an y that is written, not added to; none: all is done
};
void record(gpu::Recorder&, const ProductNN&);

// For both products through a weight (N, K), in tiles or not, of up to so many rows that are planned for; 0 where nothing would
// be split.
std::uint64_t product_scratch(const gpu::Device&, ProductPath, std::uint32_t rows, std::uint32_t outputs, std::uint32_t inputs, bool tiled);

// y(N, K) += x(M, N)^T * w(M, K), in f32 arithmetic: the gradient of a trained weight. Sums run over rows in a fixed order.
struct ProductTN {
  Operand x, w;
  Tensor y;        // f32
  Tensor scratch;  // f32, product_tn_scratch elements; may be left out where that is 0
};
void record(gpu::Recorder&, const ProductTN&);

std::uint64_t product_tn_scratch(const gpu::Device&, std::uint32_t rows, std::uint32_t outputs, std::uint32_t inputs);

}  // namespace nibble
