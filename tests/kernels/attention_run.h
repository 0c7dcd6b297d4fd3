#pragma once

#include "nibble/kernels/attention.h"
#include "tests/kernels/attention_reference.h"
#include "tests/support/gpu_test.h"

namespace nibble::test {

std::vector<double> doubles(std::span<const float> values);
std::vector<float> floats(std::span<const double> values);

struct AttentionInputs {
  std::vector<float> q, k, v, d_o;
  explicit AttentionInputs(const AttentionCase& shape);
};

struct AttentionOutputs {
  std::vector<float> o, lse, dq, dk, dv;
  bool operator==(const AttentionOutputs&) const = default;
};

struct BackwardOutputs {
  Tensor delta, dq, dk, dv;
};

AttentionBackward backward_of(const Attention& forward, const AttentionCase& shape, const Tensor& d_o,
                              const BackwardOutputs& outputs);

// Both passes, with outputs between guards.
AttentionOutputs run(const AttentionCase& shape, const AttentionInputs& inputs, AttentionVariant variant);

}  // namespace nibble::test
