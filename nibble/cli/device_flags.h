#pragma once

#include "nibble/gpu/device.h"
#include "nibble/kernels/operand.h"
#include "nibble/model/frozen_weights.h"

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

namespace nibble::cli {

// How and where to compute: the options that every verb with a GPU has.
struct DeviceFlags {
  std::string gpu;
  std::string compute = "auto";
  bool profile = false;
  std::vector<std::string> toggles;  // gpu::DeviceOptions::toggles

  // `--gpu` chooses the adapter of the GPU; a verb whose `--adapter` is no LoRA adapter takes that name for it too.
  enum class AdapterOption { names_gpu, names_lora };
  void add_to(CLI::App& verb, AdapterOption adapter_option);
  gpu::Device open() const;
  // The product path asked for, or the adapter's best. Throws UsageError where the adapter cannot do it.
  ProductPath path(const gpu::AdapterInfo& info) const;
};

std::string_view name_of(ProductPath path);

// "NVIDIA H100 (discrete GPU, Vulkan), products by subgroup matrices"
std::string describe(const gpu::AdapterInfo& info, ProductPath path);

// The table of --profile, on standard error.
void print_profile(gpu::Device& device);

}  // namespace nibble::cli
