#pragma once

#include "nibble/weights/peft.h"

// Adapters of mlx_lm: a folder with adapter_config.json (lora_parameters) and adapters.safetensors, whose matrices are transposed.
// Those of DoRA (fine_tune_type) compute the same as PEFT's.
namespace nibble {

// By the key lora_parameters.
bool is_mlx_adapter(const fs::path& folder);

// What adapter_config.json and the names in adapters.safetensors say. DataError names what is not supported, and tensors of modules
// that are no projections, or not the same ones in each layer.
LoraConfig read_mlx_config(const fs::path& folder);

LoraAdapter load_mlx_adapter(const fs::path& folder, const ModelConfig& model);

// The adapter must have one rank and one alpha, the same projections in each of its layers, and no head.
void save_mlx_adapter(const fs::path& folder, const LoraAdapter& adapter, const ModelConfig& model);

}  // namespace nibble
