#pragma once

#include "nibble/kernels/operand.h"

#include <optional>

namespace nibble {

// What one workgroup computes: block_m x block_n of the result in steps of block_k of the inner dimension, by subgroups of
// part_m x part_n each.
struct MatrixTile {
  gpu::MatrixConfig matrix;
  std::uint32_t subgroup;  // invocations
  std::uint32_t block_m, block_n, block_k, part_m, part_n;

  std::uint32_t subgroups() const { return block_m / part_m * (block_n / part_n); }
  std::uint32_t invocations() const { return subgroups() * subgroup; }
};

// The fastest known tile of the adapter; empty where it has no matrices that suit.
std::optional<MatrixTile> default_matrix_tile(const gpu::AdapterInfo&);

// Products on the adapter's matrix units: f16 operands with row scales, f32 accumulators. The kernel's text is written for the
// adapter's matrix shape by a small writer, all loops over matrices unrolled: compilers keep arrays of matrices that are
// indexed in loops in memory, eight times slower.
struct MatrixProduct {
  Operand x;
  Weight w;
  Tensor y;  // f32
  bool accumulate = false;
  std::optional<MatrixTile> tile = {};  // the default where empty
};

// Whether the adapter has matrices for a weight (N, K): N and K are multiples of 8. Else the f16 path serves.
bool matrix_fits(const gpu::Device&, std::uint32_t outputs, std::uint32_t inputs);

// y(M, N) [=|+=] x(M, K) * w(N, K)^T
void record_matrix_nt(gpu::Recorder&, const MatrixProduct&);

// y(M, K) [=|+=] x(M, N) * w(N, K)
void record_matrix_nn(gpu::Recorder&, const MatrixProduct&);

namespace detail {

enum class MatrixLayout { nt, nn };

// The kernel's text. `whole_steps`: the inner dimension is a multiple of block_k.
std::string matrix_text(const MatrixTile& tile, MatrixLayout layout, bool whole_steps, bool accumulate);

}  // namespace detail

}  // namespace nibble
