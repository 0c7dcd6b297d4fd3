#pragma once

#include "nibble/kernels/product.h"

namespace nibble {

// y[r, c] = x[s, c] * inv_rms[r] * weight[c] with s = rows[r] and inv_rms[r] = 1 / sqrt(mean_c x[s, c]^2 + eps), as
// Qwen3RMSNorm of transformers in float32. Writes (=) y and inv_rms. Every rows[r] is a row of x.
struct RmsNorm {
  Tensor x;        // (R_in, C) f32
  Tensor weight;   // (C) f32
  Tensor rows;     // (R or more) u32; none: all rows of x in order
  Operand y;       // (R, C)
  Tensor inv_rms;  // (R) f32
  float eps = 1e-6f;
};
void record(gpu::Recorder& recorder, const RmsNorm& op);

// dx[s] += inv_rms[r] * (dy[r] * weight - x[s] * inv_rms[r]^2 * mean(dy[r] * weight * x[s])) with s = rows[r]: dx is the
// residual stream's gradient. No row appears twice in `rows`. Without `rows`, dx may go to `packed` too (=), as PackRows has it,
// and to `y` what the forward pass wrote there (=), once more.
struct RmsNormBackward {
  Tensor dy;       // (R, C) f32
  Tensor x;        // (R_in, C) f32
  Tensor weight;   // (C) f32
  Tensor inv_rms;  // (R) f32, as RmsNorm left it
  Tensor rows;     // (R or more) u32, or none
  Tensor dx;       // (R_in, C) f32
  Operand packed = {};  // (R, C) f16, or none
  Operand y = {};       // likewise
  SplitSums sums = {};  // of dy, where a product left some: without `rows`, and where takes_split_sums
};
void record(gpu::Recorder& recorder, const RmsNormBackward& op);

// Whether RmsNormBackward adds up what a product left of a dy (R, C).
bool takes_split_sums(const gpu::Device&, std::uint32_t rows, std::uint32_t columns);

}  // namespace nibble
