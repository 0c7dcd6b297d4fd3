#include "nibble/io/shards.h"

#include "nibble/base/error.h"
#include "nibble/io/atomic.h"
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

}  // namespace

std::uint64_t bytes_of(const TensorSpec& tensor) {
  std::uint64_t bytes = size_of(tensor.dtype);
  for (const auto size : tensor.shape) bytes *= static_cast<std::uint64_t>(size);
  return bytes;
}

SavedShards save_shards(const fs::path& folder, const std::vector<TensorSpec>& tensors, std::uint64_t max_shard_bytes,
                        const FillTensor& fill) {
  check<UsageError>(max_shard_bytes > 0, "save_shards",
                    "The largest size of a shard is 0 bytes; it must be at least 1.");
  const auto shards = split(tensors, max_shard_bytes);
  SavedShards saved{.files = shards.size()};
  std::uint64_t parameters = 0;
  Json weight_map = Json::object();
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shards.size() == 1 ? "model.safetensors"
                                                : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    SafetensorsWriter writer(folder / name, shards[i]);
    for (const auto& tensor : writer.tensors()) {
      fill(tensor, writer);
      saved.bytes += bytes_of(tensor);
      parameters += numel(tensor);
      weight_map[tensor.name] = name;
    }
    writer.finish();
  }
  if (shards.size() > 1) {
    const Json index{{"metadata", {{"total_parameters", parameters}, {"total_size", saved.bytes}}},
                     {"weight_map", weight_map}};
    write_file_atomically(folder / "model.safetensors.index.json", write_json(index) + "\n");
  }
  return saved;
}

}  // namespace nibble
