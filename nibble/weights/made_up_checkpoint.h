#pragma once

#include "nibble/weights/config.h"

#include <functional>

namespace nibble {

// Bytes of a model's tensors in bf16.
std::uint64_t checkpoint_bytes(const ModelConfig& config);

inline constexpr std::uint64_t made_up_shard_bytes = std::uint64_t{5} * 1000 * 1000 * 1000;

// Writes a model of random bf16 weights into an empty folder as transformers does: config.json, and safetensors in shards of at
// most `max_shard_bytes`. For measuring without a download. DataError where the disk has no room for it. `progress` hears the part that is written.
void write_made_up_checkpoint(const fs::path& folder, const ModelConfig& config, std::uint64_t max_shard_bytes = made_up_shard_bytes,
                              const std::function<void(double)>& progress = {});

}  // namespace nibble
