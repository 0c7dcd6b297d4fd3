#pragma once

#include "nibble/kernels/operand.h"

namespace nibble {

// A slice of the vocabulary's logits: columns [first, first + P) of all.
struct LogitsPart {
  Tensor logits;  // (R, P) f32
  std::uint32_t first = 0;
};

// CrossEntropy (cross_entropy.h) of logits that are never whole in memory: parts come one after the other, in order, and the last
// one gives loss and right predictions. A label in no part gives NaN.
struct CrossEntropyPart {
  LogitsPart part;
  bool begins = false, ends = false;  // of the parts
  Tensor labels;                      // (R) u32
  Tensor stats;                       // (R, 4) f32, carried from part to part and to the slopes
  Tensor loss;                        // (R) f32
  Tensor correct;                     // (R) u32
};
void record(gpu::Recorder& recorder, const CrossEntropyPart& op);

// The gradient of a part, once statistics are of all; fields as in CrossEntropy.
struct CrossEntropySlopes {
  LogitsPart part;
  Tensor labels, stats;
  Operand d_logits;  // (R, P)
  float factor = 1;
  Tensor weights;
  float focal_gamma = 0;
};
void record(gpu::Recorder& recorder, const CrossEntropySlopes& op);

}  // namespace nibble
