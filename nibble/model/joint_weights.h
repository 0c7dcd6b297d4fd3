#pragma once

#include "nibble/kernels/matrix_tuning.h"
#include "nibble/kernels/operand.h"
#include "nibble/model/frozen_weights.h"
#include "nibble/weights/device_weights.h"
#include "nibble/weights/joint.h"

#include <array>
#include <optional>
#include <span>
#include <vector>

namespace nibble {

// Side of the tiles that weights are decoded into for batches of `tokens`: where the device is faster so and all sizes allow
// it. 0: rows, as always of layers that are cached, since forward and backward products want other tiles.
std::uint32_t joint_weight_tile(const gpu::Device& device, const ModelConfig& config, std::uint32_t tokens);

// Decodes NF4 projections to f16, joint.
class JointWeights {
 public:
  // For batches of at most `tokens`. With `one_room` the joints of the layers that are not cached are decoded into the same room.
  // `use_dora`: adapters may be of DoRA.
  JointWeights(gpu::Device& device, const DeviceWeights& weights, const ModelConfig& config,
               const std::vector<Residency>& residency, bool one_room, std::uint32_t tokens, bool use_dora);
  // What that takes of the device's memory.
  static std::uint64_t bytes(const ModelConfig& config, const std::vector<Residency>& residency, bool one_room);

  // For products of this layout, with DoRA's gains where `dora` is given. Valid until the next is asked for. `rows`, which the products
  // read too, is recorded here: what decodes does it beside.
  Weight weight(gpu::Recorder& recorder, std::uint32_t layer, Joint joint, MatrixLayout layout, Dora* dora,
                const std::optional<LoraRowsSum>& rows = {});

  // The same for NT, in NF4; empty where it cannot be read so.
  std::optional<Weight> codes(gpu::Recorder& recorder, std::uint32_t layer, Joint joint, Dora* dora) const;

  // The power of two that brings the largest magnitude (of DoRA with the largest gain that is promised) to [1/2, 1): with rows of operands below 2^14, products then stay within
  // f16 as their rows are stored (product.h), unless hundreds of terms of the largest magnitudes have one sign.
  float scale(std::uint32_t layer, Joint joint) const;

 private:
  struct Slot {
    Tensor data;                       // (out, in) f16
    std::uint32_t layer = UINT32_MAX;  // what it holds
    bool turned = false;
    std::uint64_t gains = 0;           // Dora::version, or 0 of the base's own
  };

  const DeviceWeights& weights_;
  DecodedRows rows_;
  bool one_room_;
  std::uint32_t tile_;
  bool use_dora_;
  std::vector<std::array<Slot, 4>> slots_;  // by row
};

}  // namespace nibble
