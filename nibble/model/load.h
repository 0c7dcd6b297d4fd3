#pragma once

#include "nibble/kernels/operand.h"
#include "nibble/weights/device_weights.h"
#include "nibble/weights/lora_weights.h"

#include <filesystem>
#include <functional>
#include <optional>

namespace nibble {

// A model folder and, if named, an adapter folder, on the device.
struct LoadedModel {
  ModelConfig config;
  DeviceWeights weights;
  std::optional<LoraAdapter> adapter;
  std::optional<LoraWeights> lora;
};

struct ModelSource {
  std::filesystem::path model;
  std::filesystem::path adapter;  // empty: the base alone
  bool trainable = false;         // room for the adapter's gradients and moments
};

LoadedModel load_model(gpu::Device& device, const ModelSource& source, ProductPath path,
                       const std::function<void(double)>& progress = {});

}  // namespace nibble
