#pragma once

#include "nibble/gpu/recorder.h"

#include <cstdint>
#include <memory>
#include <optional>

namespace nibble::gpu {

// Bytes on their way from host memory that kernels read to the device. Drivers may let copies and kernels of a queue take
// turns; so kernels that compute for long take pieces along, and what they left is copied where it is needed.
class Cargo {
 public:
  // The device's kernels find it for as long as it lives; of several that which was made last.
  static std::shared_ptr<Cargo> make(const Device& device);
  // Null where there is none, or nothing is loaded that one binding holds.
  static std::shared_ptr<Cargo> waiting(const Device& device);

  // What was loaded before is copied. Tensors of u32s of one size; `to` is not read before finish().
  void load(Recorder& recorder, const Tensor& from, const Tensor& to);

  struct Piece {
    Tensor from, to;  // all that was loaded
    std::uint32_t first_word = 0, words = 0;
  };
  // The share of a kernel that computes so much, as a multiple of `unit` words; nothing where that is none. All kernels between
  // load() and finish() together get all of it, if they compute as much as those of the last time: so each takes the same
  // time more where the link is what bounds, and none where it is not. Taken is taken: the caller records a kernel that moves it.
  std::optional<Piece> take(double flops, std::uint32_t unit);

  // Records copies of what was not taken. From here on kernels may read it.
  void finish(Recorder& recorder);

 private:
  Tensor from_, to_;  // empty: nothing is loaded
  std::uint32_t taken_ = 0;
  double offered_ = 0, expected_ = 0;  // arithmetic of the kernels that asked, this time and the last; 0: not known
};

}  // namespace nibble::gpu
