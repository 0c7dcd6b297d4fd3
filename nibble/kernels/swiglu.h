#pragma once

#include "nibble/kernels/operand.h"

namespace nibble {

// h = silu(gate) * up element by element, silu(g) = g / (1 + exp(-g)) in f32, for any g. Writes (=) h.
struct SwiGlu {
  Tensor gate, up;  // (T, I) f32
  Operand h;        // (T, I)
};
void record(gpu::Recorder& recorder, const SwiGlu& op);

// With s = 1 / (1 + exp(-gate)): d_gate = dh * up * s * (1 + gate * (1 - s)), d_up = dh * gate * s. Writes (=) both, which
// are of the same path and share no memory with the inputs.
struct SwiGluBackward {
  Tensor dh;             // (T, I) f32
  Tensor gate, up;       // (T, I) f32
  Operand d_gate, d_up;  // (T, I)
};
void record(gpu::Recorder& recorder, const SwiGluBackward& op);

}  // namespace nibble
