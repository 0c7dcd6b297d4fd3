#pragma once

#include "nibble/kernels/adamw_8bit.h"
#include "nibble/kernels/operand.h"
#include "nibble/model/placed_array.h"
#include "nibble/weights/device_weights.h"

#include <algorithm>
#include <array>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

enum class HeadMoments {
  f32,
  eight_bit,  // block-wise, see AdamW8Bit
};

std::string_view name_of(HeadMoments moments);  // "f32", "8bit"

struct TrainedHeadOptions {
  ProductPath path = ProductPath::f32;
  HeadMoments moments = HeadMoments::f32;
  MemoryPlace place = MemoryPlace::device;  // of the moments, and of the master where products read a copy of it in f16
  std::uint32_t piece_blocks = 1 << 14;     // blocks of 256 elements that are updated at a time where the place is the host
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

  // One update by the gradient times the factor in `norm_and_factor` (see GradNorm). Where the state is on the host it submits
  // what is recorded and waits.
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

  // The moments as a checkpoint keeps them, bit for bit: exp_avg.NAME and exp_avg_sq.NAME, in 8 bits with NAME.absmax beside.
  std::vector<TensorSpec> moment_specs() const;
  void read_moment(const std::string& name, const std::function<void(std::span<const std::byte>)>& sink) const;
  // DataError names file and tensor where one is missing, of another type or of another size; nothing has changed then.
  void load_moments(const SafetensorsFile& file);

  // " in the gradient of lm_head, at entry 17 of the vocabulary", for errors.
  std::string describe_element(std::uint64_t element) const;

  struct Bytes {
    std::uint64_t device = 0, host = 0;
  };
  // What the constructor takes, the product's copy included.
  static Bytes bytes(const ModelConfig& config, const TrainedHeadOptions& options);

 private:
  struct Moment {
    PlacedArray values;  // f32, or codes
    PlacedArray absmax;  // of codes
  };
  // Calls visit(name, array, type in a file, bytes in a file) for each array of the moments.
  template <typename Self, typename Visit>
  static void for_each_moment_array(Self& self, Visit&& visit);

  template <typename Use>
  void for_each_piece(Use&& use) const;
  gpu::Tensor master_piece(std::uint32_t first, std::uint32_t last) const;
  void update_piece(gpu::Recorder& recorder, const gpu::Tensor& norm_and_factor, const AdamWRule& rule, std::uint32_t first,
                    std::uint32_t last);
  void record_adamw(gpu::Recorder& recorder, const gpu::Tensor& master, const gpu::Tensor& norm_and_factor,
                    const AdamWRule& rule, std::uint32_t first, std::uint32_t last);
  void copy_piece(gpu::Recorder& recorder, const gpu::Tensor& master, std::uint32_t first) const;
  void copy_all(float largest);
  MatrixSource f32_source(const PlacedArray& array) const;
  MatrixSource moment_source(const Moment& moment, const std::array<float, 256>& map) const;
  bool has_copy() const { return options_.path != ProductPath::f32; }
  std::uint32_t elements_before(std::uint32_t block) const { return std::min(size_, block * moment_block); }

  gpu::Device& device_;
  TrainedHeadOptions options_;
  DenseMatrix& product_;
  std::uint32_t rows_, columns_, size_, blocks_;
  gpu::Tensor gradient_;
  PlacedArray master_;
  Moment first_, second_;
  gpu::Tensor maps_;     // of moments in 8 bits
  gpu::Tensor largest_;  // magnitude of the master, where there is a copy
  std::uint64_t version_ = 0;
};

}  // namespace nibble
