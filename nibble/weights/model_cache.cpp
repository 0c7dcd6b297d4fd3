#include "nibble/weights/model_cache.h"

#include <algorithm>
#include <set>

#include "nibble/base/error.h"
#include "nibble/base/fnv.h"
#include "nibble/base/log.h"
#include "nibble/io/atomic.h"
#include "nibble/io/gguf.h"
#include "nibble/io/json.h"
#include "nibble/weights/checkpoint_check.h"
#include "nibble/weights/gguf_model.h"
#include "nibble/weights/model_folder.h"
#include "nibble/weights/quantize.h"

namespace nibble {
namespace {

constexpr const char* manifest_name = "cache.json";
constexpr int cache_version = 1;  // of what is written; another one is made again
constexpr std::uint64_t sample_bytes = 4096;

// "NAME SIZE TIME"
std::string file_text(const fs::path& path) {
  std::error_code error;
  const auto time = fs::last_write_time(path, error);
  const auto size = error ? 0 : fs::file_size(path, error);
  check<DataError>(!error, path.string(), "Could not look at this file: {}.", error.message());
  return fmt::format("{} {} {}", path.filename().string(), size, time.time_since_epoch().count());
}

void add_samples(Fnv1a64& hash, const Checkpoint::Entry& entry) {
  const std::uint64_t bytes = entry.tensor->bytes, length = std::min(sample_bytes, bytes);
  std::string sample(length, '\0');
  for (const std::uint64_t first : {std::uint64_t{0}, (bytes - length) / 2, bytes - length}) {
    entry.file->read(*entry.tensor, first, std::as_writable_bytes(std::span(sample)));
    hash.add(sample);
  }
}

bool is_quantised(const Checkpoint& checkpoint, const ModelConfig& config) {
  const auto tensors = base_tensors(config);
  return std::ranges::any_of(tensors, [&](const BaseTensor& tensor) { return quantised(checkpoint, tensor).has_value(); });
}

// Whether a folder is what was written for this key; throws DataError where it cannot even be read.
bool is_whole(const fs::path& folder, const std::string& key) {
  const fs::path path = folder / manifest_name;
  if (!path_exists(path)) return false;
  const Json json = read_json_file(path, {.max_bytes = std::size_t{1} << 16});
  const JsonObject manifest(json, path.string());
  if (manifest.integer("version", {}) != cache_version || manifest.string("source_key") != key) return false;
  if (manifest.string("key") != weights_key(folder)) return false;
  check_checkpoint(Checkpoint(folder), read_model_config(folder));
  return true;
}

bool can_be_taken(const fs::path& folder, const std::string& key) {
  if (!path_exists(folder)) return false;
  std::string why = "It is not what was written here for this model.";
  try {
    if (is_whole(folder, key)) return true;
  } catch (const DataError& error) {
    why = error.what();
  }
  log_warning(fmt::format("[{}] The model in the cache cannot be used and is made again: {}", folder.string(), why));
  return false;
}

void make(const fs::path& model, const fs::path& target, const std::string& key, const std::function<void(double)>& progress) {
  check_folder_to_replace(target, std::span(&model, 1));
  AtomicFolder folder(target);
  write_quantized({.model = model, .output = target, .progress = progress}, folder.path());
  copy_model_files(model, folder.path());
  const Json manifest{{"version", cache_version}, {"source", fs::absolute(model).string()}, {"source_key", key}, {"key", weights_key(folder.path())}};
  write_file_atomically(folder.path() / manifest_name, write_json(manifest) + "\n");
  folder.commit();
}

}  // namespace

std::string weights_key(const fs::path& model) {
  Fnv1a64 hash;
  for (const char* name : {"config.json", "generation_config.json"}) {
    const std::string text = path_exists(model / name) ? read_file(model / name, std::uint64_t{16} << 20) : "";
    hash.add(fmt::format("{} {}\n{}\n", name, text.size(), text));
  }
  const Checkpoint checkpoint(model);
  std::set<fs::path> files;
  for (const auto& [name, entry] : checkpoint.tensors()) {
    const fs::path& path = entry.file->path();
    if (files.insert(path).second) hash.add(file_text(path) + "\n");
    hash.add(fmt::format("{} {} {} {} {}\n", name, path.filename().string(), entry.tensor->dtype_name, to_string(entry.tensor->shape),
                         entry.tensor->offset));
    add_samples(hash, entry);
  }
  return fmt::format("{:016x}", hash.value());
}

CachedModel cached_model(const fs::path& model, const fs::path& cache, const std::function<void(double)>& progress) {
  check<UsageError>(!cache.empty(), "cache", "No folder is named for the cache.");
  check<UsageError>(!is_gguf(model), model.string(),
                    "This is a GGUF file, and model folders alone are kept in a cache; `nibble merge --model FILE --output FOLDER` makes one of it.");
  const ModelConfig config = read_model_config(model);
  const Checkpoint source = open_checkpoint(model, config);
  check_checkpoint(source, config);
  if (is_quantised(source, config)) return {.folder = model, .in_cache = false, .bytes = source.total_bytes()};
  const std::string key = weights_key(model);
  const fs::path whole = fs::absolute(model).lexically_normal(), name = whole.has_filename() ? whole.filename() : whole.parent_path().filename();
  CachedModel cached{.folder = cache / fmt::format("{}-{}", name.string(), key)};
  cached.made = !can_be_taken(cached.folder, key);
  if (cached.made) make(model, cached.folder, key, progress);
  cached.bytes = Checkpoint(cached.folder).total_bytes();
  return cached;
}

}  // namespace nibble
