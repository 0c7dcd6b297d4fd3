#pragma once

#include "nibble/base/nf4_table.h"
#include "nibble/kernels/kernel.h"

namespace nibble {

// How large products are done; they differ in speed and rounding alone.
enum class ProductPath {
  matrix,  // subgroup matrices: f16 operands, f32 accumulators
  f16,     // f16 operands in vectors, f32 accumulators
  f32,     // everything f32: the reference, and for adapters without f16
};

// The element type of a product's operands.
constexpr DType operand_dtype(ProductPath path) { return path == ProductPath::f32 ? DType::f32 : DType::f16; }

// A matrix (rows, columns) as a product reads it. In f16 each row r is stored multiplied by a power of two that brings its
// largest magnitude to [2^13, 2^14), so that no row leaves f16's range, and `scale`[r] is the inverse of that power: value =
// data * scale. A row of zeros has scale 0, the least, where rows compete for the largest. In f32 there is no scale.
struct Operand {
  Tensor data;
  Tensor scale;  // (rows), f32; empty where data is f32
};

// A frozen weight (out, in) as a product reads it: f32 with scale 1, or f16 times the tensor-wide power of two 1/scale.
struct Weight {
  Tensor data;
  float scale = 1.0f;  // value = data * scale
  // For the matrix path alone: data is f16 in square tiles of `tile` x `tile` elements, each contiguous, one after the other
  // along a row of tiles; both dimensions are multiples of it. 0: row-major.
  std::uint32_t tile = 0;
  bool turned = false;  // they are tiles of the transpose (in, out), for products that run over `out`
  // Of a weight in NF4, which NT on the matrix path decodes on its way: data is its codes, (out, in / 8) u32, this the largest magnitudes of
  // its blocks, (out, in / 64) f32. In f16 values are divided by `scale`.
  Tensor absmax = {};
  CodeBook codes = CodeBook::nf4;

  std::uint32_t inputs() const { return absmax ? 8 * data.dim(1) : data.dim(1); }
};

// An operand of `rows` x `columns` for the path.
Operand make_operand(gpu::Device& device, ProductPath path, std::uint32_t rows, std::uint32_t columns,
                     std::string_view label);

// What make_operand takes of the device's memory.
std::uint64_t operand_bytes(ProductPath path, std::uint32_t rows, std::uint32_t columns);

// Bytes of a row of a matrix; 0 where there is none.
inline std::uint64_t row_bytes(const Tensor& matrix) { return matrix ? std::uint64_t{matrix.dim(1)} * size_of(matrix.dtype()) : 0; }

// The first `rows` rows.
Operand first_rows(const Operand& operand, std::uint32_t rows);

}  // namespace nibble
