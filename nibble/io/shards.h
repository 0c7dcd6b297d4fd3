#pragma once

#include <functional>

#include "nibble/io/safetensors.h"

namespace nibble {

// What was written.
struct SavedShards {
  std::size_t files = 0;
  std::uint64_t bytes = 0;  // of all tensors
};

// Gives the bytes of one tensor to the writer, in pieces of any size.
using FillTensor = std::function<void(const TensorSpec& tensor, SafetensorsWriter& writer)>;

// Writes the tensors into `folder` as transformers lays out a model: model.safetensors where they fit into
// `max_shard_bytes`, else model-00001-of-0000N.safetensors with model.safetensors.index.json, filled in the order
// given; a larger tensor has a file to itself. Each file appears whole; for all at once, write into an AtomicFolder.
SavedShards save_shards(const fs::path& folder, const std::vector<TensorSpec>& tensors, std::uint64_t max_shard_bytes,
                        const FillTensor& fill);

// In bytes; the shape must have been checked.
std::uint64_t bytes_of(const TensorSpec& tensor);

}  // namespace nibble
