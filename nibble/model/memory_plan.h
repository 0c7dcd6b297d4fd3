#pragma once

#include "nibble/model/model.h"

#include <cstdint>
#include <optional>

namespace nibble {

// Bytes by what they are for: on the device as gpu::Device::memory() counts them, and in host memory.
struct MemoryPlan {
  std::uint64_t frozen_weights = 0;   // NF4 of resident layers and of slots of streamed ones, embedding, head, norms
  std::uint64_t decoded_weights = 0;
  std::uint64_t adapters = 0;         // parameters, gradients, moments; a head that they bring
  std::uint64_t layer_inputs = 0;     // the residual stream before each layer, and its gradient
  std::uint64_t activations = 0;      // kept between the passes
  std::uint64_t scratch = 0;
  std::uint64_t head = 0;
  std::uint64_t trained_head = 0;     // of a head that is trained
  std::uint64_t workspace = 0;        // batches, tables, statistics, parameters of kernels

  std::uint64_t host_weights = 0;     // of streamed layers, or of those on a disk the few on their way, and of tables on the host
  std::uint64_t host_head = 0;        // of a head that is trained
  std::uint64_t host_moments = 0;     // of the adapters
  std::uint64_t host_inputs = 0;      // of layers whose input is offloaded
  std::uint64_t host_staging = 0;     // what is on its way to or from the device, at most
  std::uint64_t disk_weights = 0;     // of streamed layers that lie on a disk

  // Of the device.
  std::uint64_t total() const {
    return frozen_weights + decoded_weights + adapters + layer_inputs + activations + scratch + head + trained_head + workspace;
  }
  std::uint64_t host_total() const { return host_weights + host_head + host_moments + host_inputs + host_staging; }
};

// Of a run with a model that is not loaded yet, from shapes alone.
MemoryPlan plan_memory(const gpu::Device& device, const ModelConfig& config, const ModelOptions& options, const LoraConfig& lora,
                       const std::optional<TrainedHeadOptions>& trained_head = {}, const MomentsOptions& moments = {});

}  // namespace nibble
