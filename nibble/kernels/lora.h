#pragma once

#include "nibble/kernels/dropout.h"
#include "nibble/kernels/operand.h"

namespace nibble {

// LoRA (Hu et al. 2021): y += scaling * b (a dropout(x)), with adapters a(r, K) and b(N, r) and all arithmetic in f32. x and
// dy are operands of the path in use. r is any number.

// h(M, r) = dropout(x)(M, K) * a^T
struct LoraDown {
  Operand x;
  Tensor a, h;
  Dropout dropout = {};
};
void record(gpu::Recorder&, const LoraDown&);

// y(M, N) += scaling * h * b^T
struct LoraUp {
  Tensor h, b, y;
  float scaling = 1.0f;
};
void record(gpu::Recorder&, const LoraUp&);

// dh(M, r) = scaling * dy(M, N) * b
struct LoraUpBackwardInput {
  Operand dy;
  Tensor b, dh;
  float scaling = 1.0f;
};
void record(gpu::Recorder&, const LoraUpBackwardInput&);

// db(N, r) += scaling * dy^T * h
struct LoraUpBackwardWeight {
  Operand dy;
  Tensor h, db;
  float scaling = 1.0f;
  Tensor scratch;  // f32, lora_scratch elements; may be left out where that is 0
};
void record(gpu::Recorder&, const LoraUpBackwardWeight&);

// da(r, K) += dh^T * dropout(x)
struct LoraDownBackwardWeight {
  Tensor dh;
  Operand x;
  Tensor da;
  Dropout dropout = {};
  Tensor scratch;
};
void record(gpu::Recorder&, const LoraDownBackwardWeight&);

// dx(M, K) += dropout(dh * a), with the mask of the forward
struct LoraDownBackwardInput {
  Tensor dh, a, dx;
  Dropout dropout = {};
};
void record(gpu::Recorder&, const LoraDownBackwardInput&);

// Elements of scratch for the weight gradients of M rows through a projection (out N, in K) at rank r.
std::uint64_t lora_scratch(const gpu::Device&, std::uint32_t rows, std::uint32_t out, std::uint32_t in, std::uint32_t rank);

}  // namespace nibble
