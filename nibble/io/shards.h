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

// The same with all files open at once, so that tensors are filled in any order: what is made of one tensor may go to several
// places. Tensors that are named together should stand together in `tensors`.
class ShardWriter {
 public:
  ShardWriter(const fs::path& folder, const std::vector<TensorSpec>& tensors, std::uint64_t max_shard_bytes);

  // The next bytes of a tensor.
  void append(std::string_view tensor, std::span<const std::byte> bytes);
  // Puts the files in their places, and the index where there are several. `parameters` is the number it states for the model.
  SavedShards finish(std::uint64_t parameters);

 private:
  struct Shard {
    std::string name;
    std::unique_ptr<SafetensorsWriter> writer;
  };

  fs::path folder_;
  std::vector<Shard> shards_;
  std::map<std::string, std::size_t, std::less<>> shard_of_;  // by tensor
};

// In bytes; the shape must have been checked.
std::uint64_t bytes_of(const TensorSpec& tensor);

}  // namespace nibble
