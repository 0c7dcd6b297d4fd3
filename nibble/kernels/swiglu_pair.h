#pragma once

#include "nibble/kernels/operand.h"

namespace nibble {

// SwiGLU (swiglu.h has the formulas) of the joint product of gate and up, whose rows hold both: all operands are f16, with
// the scale that suits the largest of a row (operand.h). I is a multiple of 8. Writes `=`.
struct SwiGluPair {
  Operand gate_up;  // (T, 2 I)
  Operand h;        // (T, I)
};
void record(gpu::Recorder& recorder, const SwiGluPair& op);

struct SwiGluPairBackward {
  Operand dh;         // (T, I)
  Operand gate_up;    // (T, 2 I)
  Operand d_gate_up;  // (T, 2 I)
  Operand h = {};     // (T, I) what SwiGluPair wrote, once more; or none
};
void record(gpu::Recorder& recorder, const SwiGluPairBackward& op);

}  // namespace nibble
