#pragma once

#include "nibble/kernels/expert_rows.h"
#include "nibble/kernels/nf4.h"

namespace nibble {

// The weights (N, K) of E experts, one below the other, (E N, K): in NF4, or in f32 as adapters are.
struct ExpertWeights {
  Nf4 nf4 = {};        // N * K is a multiple of 64, K of 8
  Tensor values = {};  // f32, in place of it
};

// A product of each row with the weight of its expert, in f32 arithmetic on exact values of the code book; sums have a fixed order.
// x has a row for each row of the experts, or, where `by_token`, for each token.
struct ExpertProduct {
  Tensor x;  // f32
  ExpertWeights w;
  ExpertRows rows;
  Tensor y;  // (S, ...) f32, of another tensor than x
  bool by_token = false;
  bool accumulate = false;
  float scaling = 1.0f;
};

// y(S, N) [=|+=] scaling * x(., K) * W^T
void record_nt(gpu::Recorder&, const ExpertProduct&);

// y(S, K) [=|+=] scaling * x(., N) * W
void record_nn(gpu::Recorder&, const ExpertProduct&);

// The gradient of adapters: of each expert, over its rows, G += scaling * narrow^T wide. Narrow is (S, r), wide (S, C) or, where
// `by_token`, (T, C). G is (E r, C), or (E C, r) where `turned`. Sums run over rows in their order.
struct ExpertGradient {
  Tensor narrow, wide;  // f32
  ExpertRows rows;
  Tensor gradient;  // f32
  bool by_token = false;
  bool turned = false;
  float scaling = 1.0f;
};
void record(gpu::Recorder&, const ExpertGradient&);

// What a mixture of experts has between its products, with w the weight of the row's slot: z = w silu(gate) up. With the weight
// here, the sum of a token's rows of the next product is the mixture.
struct ExpertSwiGlu {
  Tensor gate, up;  // (S, I)
  Tensor weight;    // (T, k)
  ExpertRows rows;
  Tensor z;  // (S, I)
};
void record(gpu::Recorder&, const ExpertSwiGlu&);

// With h = silu(gate) up and s = 1 / (1 + exp(-gate)): d_weight = the sum of dz h over a row, d_gate = w dz up s (1 + gate (1 - s)),
// d_up = w dz gate s. Writes (=) all.
struct ExpertSwiGluBackward {
  Tensor dz, gate, up;  // (S, I)
  Tensor weight;        // (T, k)
  ExpertRows rows;
  Tensor d_gate;    // (S, I)
  Tensor d_up;      // (S, I)
  Tensor d_weight;  // (T, k)
};
void record(gpu::Recorder&, const ExpertSwiGluBackward&);

}  // namespace nibble
