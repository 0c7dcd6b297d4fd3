#pragma once

#include "nibble/base/nf4_table.h"
#include "nibble/kernels/matrix_tuning.h"
#include "nibble/kernels/product.h"

#include <optional>

namespace nibble {

// Products on the adapter's matrix units: f16 operands with row scales, f32 accumulators. The kernel's text is written for the
// adapter's matrix shape by a small writer, all loops over matrices unrolled: compilers keep arrays of matrices that are
// indexed in loops in memory, eight times slower. The members are those of ProductNT and ProductNN.
struct MatrixProduct {
  Operand x;
  Weight w;
  Tensor y, y_scale = {}, plus = {};
  bool accumulate = false;
  LoraTail lora = {};
  Tensor scratch = {};
  std::uint32_t plan_rows = 0;
  std::optional<MatrixTile> tile = {};         // by the adapter and the shape where empty
  std::optional<std::uint32_t> splits = {};    // of the inner dimension; likewise
  std::uint32_t wave = 0;                      // with splits: as in MatrixPlan
  SplitSums* sums = nullptr;                   // of NN
};

// y(M, N) [=|+=] x(M, K) * w(N, K)^T
void record_matrix_nt(gpu::Recorder&, const MatrixProduct&);

// y(M, K) [=|+=] x(M, N) * w(N, K)
void record_matrix_nn(gpu::Recorder&, const MatrixProduct&);

namespace detail {

// What the sums go to: y (f32) alone, y on top of itself or of another tensor, or y in f16 with row scales.
enum class MatrixOutput { write, accumulate, plus, f16 };

struct MatrixText {
  MatrixLayout layout;
  MatrixOutput output = MatrixOutput::write;
  bool whole_steps = false;     // the inner dimension is a multiple of block_k
  std::uint32_t tail_step = 0;  // of a LoRA tail's inner dimension: a multiple of 16, at most block_k; 0 without a tail
  bool carries = false;         // the first workgroups move a piece of cargo instead (carry.h)
  bool experts = false;         // w is NF4 of experts, blocks are tiles of their rows (expert_matrix.h); staged, to y in f32
  bool decodes = false;         // w is in NF4; staged, of NT
  CodeBook codes = CodeBook::nf4;  // of such a w, and of experts
  std::uint32_t per_token = 0;  // of experts, where x has a row a token: rows that a token has; 0: x has them all
  bool splits = false;          // blocks beyond the whole ones leave partial sums, without any scale, to product_splits.wgsl
};

std::string matrix_text(const MatrixTile& tile, const MatrixText& text);

}  // namespace detail

}  // namespace nibble
