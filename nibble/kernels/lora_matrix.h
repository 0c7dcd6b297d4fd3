#pragma once

#include "nibble/kernels/dropout.h"
#include "nibble/kernels/lora_pack.h"
#include "nibble/kernels/lora_rows_sum.h"
#include "nibble/kernels/operand.h"

#include <memory>
#include <optional>

namespace nibble {

// LoRA's narrow products on matrix units: f16 operands, f32 sums in a fixed order, all projections of a group at once.
// h and dh (T, R) are f16, in units of x's and dy's rows and of the weight: the forward product adds h b^T to x.data
// W.data^T, the backward dh a to dy.data W.data. T is any number; K and the outputs are multiples of 8. `scratch` is f32,
// lora_matrix_scratch elements, and may be shared by all.

// Inverted dropout of x, for each projection by itself.
struct LoraGroupDropout {
  float probability = 0.0f;
  std::uint32_t seed = 0;                  // of the step
  std::array<std::uint32_t, 3> streams{};  // of the projections
  std::uint32_t first_row = 0;             // of x in the token stream
};

// h = (dropout(x).data a^T) * 2^-12
struct LoraDownMatrix {
  const LoraGroup& group;
  Tensor x;  // data
  Tensor h;
  Tensor scratch;
  LoraGroupDropout dropout = {};
};
void record(gpu::Recorder&, const LoraDownMatrix&);
// Leaves what h is the sum of, in `scratch`, for the caller to record.
[[nodiscard]] LoraRowsSum record_parts(gpu::Recorder&, const LoraDownMatrix&);

// Gradients of groups whose partial sums wait in a scratch for as long as there is room, so that one dispatch adds up those of
// several, of one rank. Until add_up nothing else may write to that.
class LoraSums {
 public:
  LoraSums();
  ~LoraSums();
  LoraSums(const LoraSums&) = delete;
  LoraSums& operator=(const LoraSums&) = delete;

  // Records what still waits.
  void add_up(gpu::Recorder&);
  // What a pass that was given up left.
  void forget();

  struct State;

 private:
  friend class LoraBackward;
  std::unique_ptr<State> state_;
};

// dh = (dy.data b) * 2^-12, each projection's columns of dy with its own b; and for the projections that have an
// adapter db (outputs, r) += the group's scaling * sum over t of dy[t]^T h[t] and da (r, K) += sum over t of dh[t]^T dropout(x)[t],
// in f32. Rows' factors are powers of two that differ: in each part of the sum h and dh are multiplied by a row's own
// over the part's largest, which is exact in f16 as far as it counts.
struct LoraBackwardMatrix {
  const LoraGroup& group;
  Operand x, dy;
  Tensor h, dh;
  std::array<Tensor, 3> da, db;  // empty where there is no adapter; best parts of one buffer
  Tensor scratch;
  LoraGroupDropout dropout = {};
  LoraSums* sums = nullptr;  // where da and db wait to be added up; none: that is recorded too
};
void record(gpu::Recorder&, const LoraBackwardMatrix&);

// The same in two steps, for an x that is made only after dh has been used: the first one reads its scale alone.
class LoraBackward {
 public:
  // Records the partial sums of dh and db.
  LoraBackward(gpu::Recorder&, const LoraBackwardMatrix&);
  ~LoraBackward();
  LoraBackward(const LoraBackward&) = delete;
  LoraBackward& operator=(const LoraBackward&) = delete;

  // What dh is the sum of, for the caller to record; none where that is done.
  std::optional<LoraRowsSum> take_rows();

  // Records dh if that was not taken, da and db, with `scratch` as the first step left it; one of a scratch and its sums after the other.
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Whether the adapter has matrices for such a group. Else the kernels of lora.h serve.
bool lora_matrix_fits(const gpu::Device&, const LoraGroupShape& shape);

// Elements of scratch for up to so many rows.
std::uint64_t lora_matrix_scratch(const gpu::Device&, const LoraGroupShape& shape, std::uint32_t rows);

}  // namespace nibble
