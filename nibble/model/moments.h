#pragma once

#include "nibble/kernels/adamw_8bit.h"
#include "nibble/model/placed_array.h"
#include "nibble/weights/matrix_source.h"

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

enum class MomentKind {
  f32,
  eight_bit,  // block-wise, see AdamW8Bit
};

std::string_view name_of(MomentKind kind);          // "f32", "8bit"
MomentKind moment_kind_of(std::string_view name);   // UsageError lists the names

struct MomentsOptions {
  MomentKind kind = MomentKind::f32;
  MemoryPlace place = MemoryPlace::device;
  std::uint32_t piece_blocks = 1 << 12;  // blocks of 256 elements that are updated at a time where the place is the host
  bool record_copies = true;             // see PlacedArrayShape
};

// Consecutive elements under the name by which a checkpoint has their moments. `first` is a multiple of moment_block, and the last
// block is no other part's.
struct MomentPart {
  std::string name;
  std::uint64_t first = 0, size = 0;
};

// A tensor of a checkpoint that holds moments of a part as they are kept: values or codes, or what scales codes.
struct MomentTensor {
  std::string name;
  DType dtype = DType::f32;
  PlacedArray* array = nullptr;
  std::uint64_t first = 0, bytes = 0;  // in the array
  bool at_least_zero = false;          // all that it may hold
  std::uint8_t zero = 0;               // of codes, the one that stands for 0

  TensorSpec spec() const { return {.name = name, .dtype = dtype, .shape = {static_cast<std::int64_t>(bytes / size_of(dtype))}}; }
};

// One update by AdamW of consecutive elements from `first` on, a multiple of moment_block; of others behind them in the last block
// nothing but zeros may be kept.
struct MomentUpdate {
  gpu::Tensor weights, gradients;  // f32, flat, of these elements
  gpu::Tensor norm_and_factor;     // see GradNorm
  AdamWRule rule;
  std::uint64_t first = 0;
};

// Both moments of AdamW for a flat array of weights, of either kind and in either place. Where they lie changes no byte of the
// results. They begin at zero. Not copied, but moved.
class Moments {
 public:
  enum class Which { first, second };

  Moments() = default;
  Moments(gpu::Device& device, std::uint64_t size, const MomentsOptions& options, std::string_view label);
  Moments(Moments&&) = default;
  Moments& operator=(Moments&&) = default;

  explicit operator bool() const { return device_ != nullptr; }
  const MomentsOptions& options() const { return options_; }

  // Records the update with the copies that it needs.
  void update(gpu::Recorder& recorder, const MomentUpdate& update);
  // The kernels alone, of blocks that for_each_piece has at hand; the arrays to give to it.
  void record_kernels(gpu::Recorder& recorder, const MomentUpdate& update) const;
  std::vector<PlacedArray*> arrays();

  // As f32, in order and in pieces.
  void read_values(Which which, const PieceSink& sink) const;
  std::vector<float> values(Which which) const;
  // Of the whole array. In 8 bits they are rounded as the kernel does it; values that came from 8 bits come back exactly.
  void set_values(Which which, std::span<const float> values);

  // What a checkpoint keeps of the parts, bit for bit: exp_avg.NAME and exp_avg_sq.NAME, in 8 bits with NAME.absmax beside.
  std::vector<MomentTensor> tensors(std::span<const MomentPart> parts);
  void read(const MomentTensor& tensor, const std::function<void(std::span<const std::byte>)>& sink) const;
  // DataError names file and tensor where one is missing, of another type or size, or holds what no moment can be; nothing has changed
  // then.
  void load(const SafetensorsFile& file, std::span<const MomentPart> parts);

  // What the constructor takes.
  static PlacedArray::Bytes bytes(const gpu::AdapterInfo& info, std::uint64_t size, const MomentsOptions& options);

 private:
  struct Moment {
    PlacedArray values;  // f32, or codes
    PlacedArray absmax;  // of codes
  };
  const Moment& moment(Which which) const { return which == Which::first ? first_ : second_; }
  bool in_codes() const { return options_.kind == MomentKind::eight_bit; }

  gpu::Device* device_ = nullptr;
  MomentsOptions options_;
  std::uint64_t size_ = 0;
  Moment first_, second_;
  gpu::Tensor maps_;  // of moments in 8 bits
};

// The codes of at most moment_block values that share an absmax, by the rule of AdamW8Bit, and that absmax. It is another than the
// largest magnitude where all values come back exactly by it, and would not by that.
float encode_moments(Moments::Which which, std::span<const float> values, std::span<std::uint8_t> codes);

}  // namespace nibble
