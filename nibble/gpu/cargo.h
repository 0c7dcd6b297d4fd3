#pragma once

#include "nibble/gpu/recorder.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>

namespace nibble::gpu {

// Bytes on their way from host memory that kernels read to the device (nibble/kernels/carry.h). Drivers may let copies and kernels of a queue take
// turns; so kernels that compute for long take pieces along, and what they left is copied where it is needed.
class Cargo : public std::enable_shared_from_this<Cargo> {
 public:
  // The device's kernels find it for as long as it lives; of several that which was loaded last.
  static std::shared_ptr<Cargo> make(const Device& device);
  // Null where there is none, or nothing is loaded that one binding holds.
  static std::shared_ptr<Cargo> waiting(const Device& device);

  // What was loaded before is copied. Tensors of u32s of one size; `to` is not read before finish(). `route` names what is moved
  // between which kernels, as the same do from step to step.
  void load(Recorder& recorder, const Tensor& from, const Tensor& to, std::uint32_t route);

  struct Piece {
    Tensor from, to;  // all that was loaded
    std::uint32_t first_word = 0, words = 0;
  };
  // The share of a kernel that computes so much, as a multiple of `unit` words; nothing where that is none. All kernels between
  // load() and finish() together get all of it, if they compute as much as the last time on this route: so each takes the same
  // time more where the link is what bounds, and none where it is not. Taken is taken: the caller records a kernel that moves it.
  std::optional<Piece> take(double flops, std::uint32_t unit);

  // Records copies of what was not taken. From here on kernels may read it.
  void finish(Recorder& recorder);

 private:
  Tensor from_, to_;  // empty: nothing is loaded
  std::uint32_t taken_ = 0;
  std::uint32_t route_ = 0;
  double offered_ = 0;  // arithmetic of the kernels that asked
  std::unordered_map<std::uint32_t, double> expected_;  // that of the last time, by route
};

}  // namespace nibble::gpu
