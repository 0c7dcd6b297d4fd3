#pragma once

#include "nibble/weights/config.h"

namespace nibble {

// Bytes of a model's tensors in bf16.
std::uint64_t checkpoint_bytes(const ModelConfig& config);

// Writes a model of random bf16 weights into an empty folder as transformers does: config.json, and safetensors in shards of at
// most `max_shard_bytes`. For measuring without a download. DataError where the disk has no room for it.
void write_made_up_checkpoint(const fs::path& folder, const ModelConfig& config,
                              std::uint64_t max_shard_bytes = std::uint64_t{5} * 1000 * 1000 * 1000);

}  // namespace nibble
