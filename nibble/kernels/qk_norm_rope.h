#pragma once

#include "nibble/kernels/operand.h"

#include <span>
#include <vector>

namespace nibble {

// From a projection's token-major rows to the head-major rows that attention reads, with per-head RMSNorm and rotary
// embedding on the way:
//   y[h, row_offset + t, :] = rope(x[t, h, :] * inv_rms[t, h] * weight, position[t]),  inv_rms = 1/sqrt(mean x^2 + eps)
// rope turns the pair (i, i + D/2), as transformers' rotate_half does. D is a multiple of 8. Writes `=`; rows of y outside
// [row_offset, row_offset + T) stay as they are. All tensors are f32 but `position` (u32), and x where it has a scale. Its
// heads may be some columns of wider rows, of a projection of queries, keys and values: they begin at `first_column`, a
// multiple of 4.
struct QkNormRope {
  Operand x;        // (T, at least first_column + H * D); f32, or f16 with scales
  Tensor weight;    // (D); empty: no norm
  Tensor position;  // (T); empty, with `table`: no rotation
  Tensor table;     // (positions, D/2, 2), of rope_table; every position[t] is below its length
  Tensor y;         // (H, capacity, D)
  Tensor inv_rms;   // (T, H); empty without `weight`
  float eps = 1e-6f;
  std::uint32_t row_offset = 0;
  std::uint32_t first_column = 0;
};
void record(gpu::Recorder& recorder, const QkNormRope& op);

// dx = the gradient with respect to x, given that of y; the weight is frozen. Fields as above; x and inv_rms are read
// with `weight` only. Columns of dx that are not these heads' stay as they are.
struct QkNormRopeBackward {
  Tensor dy;  // (H, capacity, D)
  Operand x;
  Tensor weight, position, table, inv_rms;
  Tensor dx;  // as x, f32
  std::uint32_t row_offset = 0;
  std::uint32_t first_column = 0;
};
void record(gpu::Recorder& recorder, const QkNormRopeBackward& op);

// y[h, row_offset + t, :] = x[t, h, :], for values.
struct ToHeads {
  Operand x;  // as above
  Tensor y;   // (H, capacity, D)
  std::uint32_t row_offset = 0;
  std::uint32_t first_column = 0;
};
void record(gpu::Recorder& recorder, const ToHeads& op);

// dx[t, h, :] = dy[h, row_offset + t, :].
struct FromHeads {
  Tensor dy;  // (H, capacity, D)
  Tensor dx;  // as above
  std::uint32_t row_offset = 0;
  std::uint32_t first_column = 0;
};
void record(gpu::Recorder& recorder, const FromHeads& op);

// theta^(-2i/D) for i < D/2, rounded to f32 where transformers rounds.
std::vector<float> rope_frequencies(std::uint32_t head_dim, double theta);

// (cos, sin) of position * frequency for each position below `positions`: (positions, frequencies, 2). The angle is
// rounded to f32, as transformers does and models were trained with; its cosine and sine are computed in double.
std::vector<float> rope_table(std::uint32_t positions, std::span<const float> frequencies);
std::vector<float> rope_table(std::uint32_t positions, std::uint32_t head_dim, double theta);

}  // namespace nibble
