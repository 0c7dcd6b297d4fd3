#include "nibble/io/shards.h"

#include "nibble/base/error.h"
#include "nibble/io/atomic.h"
#include "nibble/io/checkpoint.h"
#include "nibble/io/json.h"

namespace nibble {
namespace {

using Shard = std::vector<TensorSpec>;

// huggingface_hub's split_state_dict_into_shards_factory: a tensor above the limit goes before the shard being filled.
std::vector<Shard> split(const std::vector<TensorSpec>& tensors, std::uint64_t max_shard_bytes) {
  std::vector<Shard> shards;
  Shard current;
  std::uint64_t current_bytes = 0;
  for (const auto& tensor : tensors) {
    const auto bytes = bytes_of(tensor);
    if (bytes > max_shard_bytes) {
      shards.push_back({tensor});
      continue;
    }
    if (current_bytes + bytes > max_shard_bytes) {
      shards.push_back(std::exchange(current, {}));
      current_bytes = 0;
    }
    current.push_back(tensor);
    current_bytes += bytes;
  }
  if (!current.empty()) shards.push_back(std::move(current));
  return shards;
}

std::uint64_t numel(const TensorSpec& tensor) { return bytes_of(tensor) / size_of(tensor.dtype); }

std::vector<Shard> checked_split(const std::vector<TensorSpec>& tensors, std::uint64_t max_shard_bytes) {
  check<UsageError>(max_shard_bytes > 0, "save_shards",
                    "The largest size of a shard is 0 bytes; it must be at least 1.");
  return split(tensors, max_shard_bytes);
}

std::string name_of_shard(std::size_t i, std::size_t count) {
  return count == 1 ? "model.safetensors" : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, count);
}

void write_index(const fs::path& folder, const SavedShards& saved, std::uint64_t parameters, const Json& weight_map) {
  const Json index{{"metadata", {{"total_parameters", parameters}, {"total_size", saved.bytes}}}, {"weight_map", weight_map}};
  write_file_atomically(folder / "model.safetensors.index.json", write_json(index) + "\n");
}

}  // namespace

std::uint64_t bytes_of(const TensorSpec& tensor) {
  std::uint64_t bytes = size_of(tensor.dtype);
  for (const auto size : tensor.shape) bytes *= static_cast<std::uint64_t>(size);
  return bytes;
}

SavedShards save_shards(const fs::path& folder, const std::vector<TensorSpec>& tensors, std::uint64_t max_shard_bytes,
                        const FillTensor& fill) {
  const auto shards = checked_split(tensors, max_shard_bytes);
  SavedShards saved{.files = shards.size()};
  std::uint64_t parameters = 0;
  Json weight_map = Json::object();
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string name = name_of_shard(i, shards.size());
    SafetensorsWriter writer(folder / name, shards[i]);
    for (const auto& tensor : writer.tensors()) {
      fill(tensor, writer);
      saved.bytes += bytes_of(tensor);
      parameters += numel(tensor);
      weight_map[tensor.name] = name;
    }
    writer.finish();
  }
  if (shards.size() > 1) write_index(folder, saved, parameters, weight_map);
  return saved;
}

ShardWriter::ShardWriter(const fs::path& folder, const std::vector<TensorSpec>& tensors, std::uint64_t max_shard_bytes) : folder_(folder) {
  const auto shards = checked_split(tensors, max_shard_bytes);
  check<UsageError>(shards.size() <= max_shards, "save_shards", "Shards of at most {} bytes would be {} files; at most {} are read.",
                    max_shard_bytes, shards.size(), max_shards);
  for (const auto& specs : shards) {
    const std::string name = name_of_shard(shards_.size(), shards.size());
    for (const TensorSpec& tensor : specs) shard_of_.emplace(tensor.name, shards_.size());
    shards_.push_back({name, std::make_unique<SafetensorsWriter>(folder / name, specs)});
  }
}

void ShardWriter::append(std::string_view tensor, std::span<const std::byte> bytes) {
  const auto shard = shard_of_.find(tensor);
  check(shard != shard_of_.end(), "save_shards", "There is no tensor {} to append to.", tensor);
  shards_[shard->second].writer->append(tensor, bytes);
}

SavedShards ShardWriter::finish(std::uint64_t parameters) {
  SavedShards saved{.files = shards_.size()};
  Json weight_map = Json::object();
  for (Shard& shard : shards_) {
    shard.writer->finish();
    for (const TensorSpec& tensor : shard.writer->tensors()) {
      saved.bytes += bytes_of(tensor);
      weight_map[tensor.name] = shard.name;
    }
  }
  if (shards_.size() > 1) write_index(folder_, saved, parameters, weight_map);
  return saved;
}

}  // namespace nibble
