#include "nibble/cli/cache_flag.h"

#include <fmt/format.h>

namespace nibble::cli {

void add_cache_option(CLI::App& verb, fs::path& cache_dir) {
  verb.add_option("--cache-dir", cache_dir,
                  "Keep the model in 4 bits in this folder and load it from there the next time: the same numbers, sooner");
}

fs::path through_cache(const fs::path& model, const fs::path& cache_dir, Progress& progress) {
  if (cache_dir.empty()) return model;
  const CachedModel cached = cached_model(model, cache_dir, [&](double done) { progress.part("Quantising into the cache", done); });
  progress.say("Cache    " + cache_text(cached));
  return cached.folder;
}

std::string cache_text(const CachedModel& cached) {
  if (!cached.in_cache) return "not needed: the model is in 4 bits already";
  return fmt::format("{} ({}), {}", cached.folder.string(), human_bytes(cached.bytes), cached.made ? "made just now" : "as it was kept");
}

}  // namespace nibble::cli
