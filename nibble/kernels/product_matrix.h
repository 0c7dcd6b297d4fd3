#pragma once

#include "nibble/kernels/product.h"

#include <optional>

namespace nibble {

// What one workgroup computes: block_m x block_n of the result in steps of block_k of the inner dimension, by subgroups of
// part_m x part_n each.
struct MatrixTile {
  gpu::MatrixConfig matrix;
  std::uint32_t subgroup;  // invocations
  std::uint32_t block_m, block_n, block_k, part_m, part_n;
  std::uint32_t band = 4;  // block rows that blocks go down side by side, sharing operands in the cache

  std::uint32_t subgroups() const { return block_m / part_m * (block_n / part_n); }
  std::uint32_t invocations() const { return subgroups() * subgroup; }
};

// The fastest known tile of the adapter; empty where it has no matrices that suit.
std::optional<MatrixTile> default_matrix_tile(const gpu::AdapterInfo&);

// Products on the adapter's matrix units: f16 operands with row scales, f32 accumulators. The kernel's text is written for the
// adapter's matrix shape by a small writer, all loops over matrices unrolled: compilers keep arrays of matrices that are
// indexed in loops in memory, eight times slower. The members are those of ProductNT and ProductNN.
struct MatrixProduct {
  Operand x;
  Weight w;
  Tensor y, y_scale = {}, plus = {};
  bool accumulate = false;
  LoraTail lora = {};
  std::optional<MatrixTile> tile = {};  // the default where empty
};

// y(M, N) [=|+=] x(M, K) * w(N, K)^T
void record_matrix_nt(gpu::Recorder&, const MatrixProduct&);

// y(M, K) [=|+=] x(M, N) * w(N, K)
void record_matrix_nn(gpu::Recorder&, const MatrixProduct&);

namespace detail {

enum class MatrixLayout { nt, nn };

// What the sums go to: y (f32) alone, y on top of itself or of another tensor, or y in f16 with row scales.
enum class MatrixOutput { write, accumulate, plus, f16 };

struct MatrixText {
  MatrixLayout layout;
  MatrixOutput output = MatrixOutput::write;
  bool whole_steps = false;     // the inner dimension is a multiple of block_k
  std::uint32_t tail_step = 0;  // of a LoRA tail's inner dimension: a multiple of 16, at most block_k; 0 without a tail
};

std::string matrix_text(const MatrixTile& tile, const MatrixText& text);

}  // namespace detail

}  // namespace nibble
