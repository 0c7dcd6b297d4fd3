#pragma once

#include <memory>

#include "nibble/io/safetensors.h"

namespace nibble {

constexpr std::size_t max_shards = 1000;  // each holds a descriptor, and a process has 1024 by default

// The weights of a model folder as Hugging Face lays it out: `model.safetensors`, or `model.safetensors.index.json` and
// the shards it names (which must lie in the folder itself). Shards stay open; their data is read piece by piece.
class Checkpoint {
 public:
  // `stem` is "model", or "adapter_model" for an adapter.
  explicit Checkpoint(const fs::path& folder, const std::string& stem = "model");
  // All tensors of one file of any format.
  explicit Checkpoint(std::unique_ptr<const TensorFile> file);

  struct Entry {
    const TensorFile* file = nullptr;
    const TensorInfo* tensor = nullptr;
  };

  // Or the file, where it is one of another format.
  const fs::path& folder() const { return folder_; }
  const std::map<std::string, Entry, std::less<>>& tensors() const { return tensors_; }
  bool has(std::string_view name) const { return tensors_.contains(name); }
  // DataError naming folder and tensor when there is none.
  const Entry& at(std::string_view name) const;
  // Fills `out` with the tensor's bytes from `offset` (within the tensor) on.
  void read(std::string_view name, std::uint64_t offset, std::span<std::byte> out) const;
  std::vector<float> read_as_f32(std::string_view name) const;
  std::uint64_t total_bytes() const;
  // The sizes of the files.
  std::uint64_t file_bytes() const;

  // Adds a file, whose tensors take the place of others of their names; these stay open for the new ones to read from.
  void put(std::unique_ptr<const TensorFile> file);
  // Leaves a tensor out, where there is one of that name.
  void forget(std::string_view name);

 private:
  void add_shards(const fs::path& index);

  fs::path folder_;
  std::vector<std::unique_ptr<const TensorFile>> files_;
  std::map<std::string, Entry, std::less<>> tensors_;
};

}  // namespace nibble
