#pragma once

#include "nibble/gpu/device.h"
#include "nibble/kernels/operand.h"
#include "nibble/weights/config.h"

#include <cstdint>
#include <filesystem>

namespace nibble {

// What a device does in a second, by which a plan weighs its choices.
struct StepRates {
  double flops = 0;         // of a training step's layers
  double memory_bytes = 0;  // read or written on the device
  double link_bytes = 0;    // between host and device
  double disk_bytes = 1.5e9;  // read from a disk, as a usual one gives
  bool measured = false;    // flops
};

// Of an adapter of such a kind with batches of so many tokens: rough, but the choices of a plan lie further apart.
StepRates usual_rates(const gpu::AdapterInfo& info, ProductPath path, std::uint32_t tokens);

// The same with the speed of one layer of these sizes over `tokens` tokens, which is measured once and kept in the folder's
// step-rates.json by adapter, driver and sizes; an empty folder keeps nothing. A damaged file is ignored.
StepRates measured_rates(gpu::Device& device, ProductPath path, const ModelConfig& config, std::uint32_t tokens,
                         const std::filesystem::path& folder);

}  // namespace nibble
