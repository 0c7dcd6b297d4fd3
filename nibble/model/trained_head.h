#pragma once

#include "nibble/kernels/operand.h"
#include "nibble/model/moments.h"
#include "nibble/weights/device_weights.h"

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

namespace nibble {

struct TrainedHeadOptions {
  ProductPath path = ProductPath::f32;
  MomentKind moments = MomentKind::f32;
  MemoryPlace place = MemoryPlace::device;  // of the moments, and of the master where products read a copy of it in f16
  std::uint32_t piece_blocks = 1 << 13;     // blocks of 256 elements that are updated at a time where the place is the host
  bool record_copies = true;                // see PlacedArrayShape

  MomentsOptions moments_options() const {
    return {.kind = moments, .place = place, .piece_blocks = piece_blocks, .record_copies = record_copies};
  }
};

// A head (vocab, hidden) that is trained: its values in f32 (the master), their gradient on the device, the moments of AdamW,
// and what products read: the master itself in f32, else a copy in f16 under a power of two that suits its largest magnitude.
// Where it lies changes no byte of the results.
class TrainedHead {
 public:
  // `product` becomes what products read, is rewritten by each update, and must outlive the head. Moments begin at zero.
  TrainedHead(gpu::Device& device, const MatrixSource& values, const TrainedHeadOptions& options, DenseMatrix& product);

  std::uint64_t parameter_count() const { return size_; }
  const TrainedHeadOptions& options() const { return options_; }
  const gpu::Tensor& gradient() const { return gradient_; }  // (vocab, hidden) f32; kernels add to it, callers clear it

  // One update by the gradient times the factor in `norm_and_factor` (see GradNorm). Where the state is on the host and copies
  // cannot be recorded it submits what is recorded and waits.
  void update(gpu::Recorder& recorder, const gpu::Tensor& norm_and_factor, const AdamWRule& rule);
  // To be called when the update was submitted and before products read its result: fits the copy's scale to the master.
  void settle();
  // Changes whenever the values do.
  std::uint64_t version() const { return version_; }

  // Replaces the master by values of the same shape; the moments stay.
  void set_values(const MatrixSource& values);
  // The master, and the moments of AdamW as f32. The head must outlive the sources.
  MatrixSource values() const;
  MatrixSource first_moment() const;
  MatrixSource second_moment() const;

  Moments& moments() { return moments_; }
  // All of them, for Moments::tensors and Moments::load.
  MomentPart moment_part() const;

  // " in the gradient of lm_head, at entry 17 of the vocabulary", for errors.
  std::string describe_element(std::uint64_t element) const;

  // What the constructor takes, the product's copy included.
  static PlacedArray::Bytes bytes(const gpu::AdapterInfo& info, const ModelConfig& config, const TrainedHeadOptions& options);

 private:
  void copy_piece(gpu::Recorder& recorder, std::uint32_t first, std::uint32_t last) const;
  void copy_all(float largest);
  gpu::Tensor master_piece(std::uint32_t first, std::uint32_t last) const;
  MatrixSource moment_source(Moments::Which which) const;
  bool has_copy() const { return options_.path != ProductPath::f32; }
  std::uint32_t elements_before(std::uint32_t block) const { return std::min(size_, block * moment_block); }

  gpu::Device& device_;
  TrainedHeadOptions options_;
  DenseMatrix& product_;
  std::uint32_t rows_, columns_, size_, blocks_;
  gpu::Tensor gradient_;
  PlacedArray master_;
  Moments moments_;
  gpu::Tensor largest_;  // magnitude of the master, where there is a copy
  std::uint64_t version_ = 0;
};

}  // namespace nibble
