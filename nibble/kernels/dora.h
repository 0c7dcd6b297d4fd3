#pragma once

#include "nibble/kernels/nf4.h"
#include "nibble/kernels/operand.h"

namespace nibble {

// DoRA (Liu et al. 2024, as PEFT has it): y = gain * (W x + scaling * B A x) with gain = magnitude / norm, and norm the 2-norm of
// that row of W + scaling * B A, which counts as a constant in the backward pass. W (N, K) is NF4 with K a multiple of 64, so
// that gain * W is NF4 with other absmax; with gain * B in B's place, products know nothing of it. Rows are added up element
// by element, so that nothing cancels, in a fixed order.

// norm[n] = sqrt(sum over k of (W + scaling * B A)[n, k]^2). Writes (=) norm.
struct DoraNorm {
  Nf4 w;
  Tensor a, b;  // (r, K), (N, r) f32
  float scaling = 1.0f;
  Tensor norm;  // (N) f32
};
void record(gpu::Recorder&, const DoraNorm&);

// gain = magnitude / norm, 0 where the norm is 0; absmax = gain * w.absmax, b_read = gain * b. Writes (=) all three, which share no
// buffer with what is read.
struct DoraGain {
  Nf4 w;
  Tensor a, b;       // as above
  Tensor magnitude;  // (N) f32
  float scaling = 1.0f;
  Tensor absmax, b_read, gain;  // as w.absmax, as b, (N)
};
void record(gpu::Recorder&, const DoraGain&);

// What products through gain * B leave as the gradient of B: db[n] += gain[n] * db_read[n].
struct DoraGradientB {
  Tensor db_read, gain;  // (N, r), (N) f32
  Tensor db;             // (N, r)
};
void record(gpu::Recorder&, const DoraGradientB&);

// d_magnitude[n] += sum over t of dy[t, first + n] * (y[t, first + n] - bias[bias_first + n]) / magnitude[n], since y without its
// bias is magnitude times what does not depend on it. Where a magnitude is 0, which takes the whole row out, its gradient is 0.
struct DoraGradientMagnitude {
  Operand dy, y;  // (T, columns)
  std::uint32_t first = 0;
  Tensor bias;    // f32, or none
  std::uint32_t bias_first = 0;
  Tensor magnitude, d_magnitude;  // (N) f32, of two buffers
};
void record(gpu::Recorder&, const DoraGradientMagnitude&);

}  // namespace nibble
