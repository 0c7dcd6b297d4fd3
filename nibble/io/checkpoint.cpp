#include "nibble/io/checkpoint.h"

#include <set>

#include "nibble/base/error.h"
#include "nibble/io/json.h"

namespace nibble {
namespace {

// A link is followed, as the hub's cache consists of them; a name that leads elsewhere is not.
bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find_first_of("/\\") == name.npos &&
         name.find('\0') == name.npos;
}

}  // namespace

Checkpoint::Checkpoint(const fs::path& folder, const std::string& stem) : folder_(folder) {
  std::error_code ignored;
  check<DataError>(fs::is_directory(folder, ignored), folder.string(),
                   "This is not a folder; a model's folder is expected here.");
  const auto single = folder / (stem + ".safetensors");
  const auto index = folder / (stem + ".safetensors.index.json");
  if (path_exists(single)) {
    put(std::make_unique<SafetensorsFile>(single));
  } else if (path_exists(index)) {
    add_shards(index);
  } else {
    fail<DataError>(folder.string(), "The folder has neither {} nor {}; weights are read from safetensors files only.",
                    single.filename().string(), index.filename().string());
  }
}

Checkpoint::Checkpoint(std::unique_ptr<const TensorFile> file) : folder_(file->path()) { put(std::move(file)); }

void Checkpoint::put(std::unique_ptr<const TensorFile> opened) {
  const TensorFile& file = *files_.emplace_back(std::move(opened));
  for (const auto& [name, tensor] : file.tensors()) tensors_.insert_or_assign(name, Entry{&file, &tensor});
}

void Checkpoint::forget(std::string_view name) {
  if (const auto at = tensors_.find(name); at != tensors_.end()) tensors_.erase(at);
}

void Checkpoint::add_shards(const fs::path& index) {
  const Json json = read_json_file(index, {.max_bytes = 100'000'000, .unique_keys = true});
  const auto weight_map = JsonObject(json, index.string()).object("weight_map");
  check<DataError>(weight_map.has_value(), index.string(), "The key \"weight_map\" must be an object; it is absent.");
  std::map<std::string, const TensorFile*> by_name;
  for (const auto& [tensor_name, value] : weight_map->json().items()) {
    const auto file_name = weight_map->string(tensor_name);
    if (!is_plain_name(file_name)) weight_map->fail_key(tensor_name, "the name of a file in the folder itself");
    auto& file = by_name[file_name];
    if (file == nullptr) {
      check<DataError>(files_.size() < max_shards, index.string(), "The index names more than {} files.", max_shards);
      file = files_.emplace_back(std::make_unique<SafetensorsFile>(folder_ / file_name)).get();
    }
    tensors_.emplace(tensor_name, Entry{file, &file->at(tensor_name)});
  }
}

const Checkpoint::Entry& Checkpoint::at(std::string_view name) const {
  const auto at = tensors_.find(name);
  check<DataError>(at != tensors_.end(), folder_.string(), "The checkpoint has no tensor {}.", name);
  return at->second;
}

void Checkpoint::read(std::string_view name, std::uint64_t offset, std::span<std::byte> out) const {
  const auto& entry = at(name);
  entry.file->read(*entry.tensor, offset, out);
}

std::vector<float> Checkpoint::read_as_f32(std::string_view name) const {
  const auto& entry = at(name);
  return entry.file->read_as_f32(*entry.tensor);
}

std::uint64_t Checkpoint::total_bytes() const {
  std::uint64_t total = 0;
  for (const auto& [name, entry] : tensors_) total += entry.tensor->bytes;
  return total;
}

std::uint64_t Checkpoint::file_bytes() const {
  std::set<fs::path> files;
  for (const auto& [name, entry] : tensors_) files.insert(entry.file->path());
  std::uint64_t total = 0;
  for (const fs::path& file : files) {
    std::error_code error;
    const auto bytes = fs::file_size(file, error);
    if (!error) total += bytes;
  }
  return total;
}

}  // namespace nibble
