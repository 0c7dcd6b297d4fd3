#include "nibble/weights/residency.h"

#include "nibble/base/error.h"
#include "nibble/gpu/disk_cache.h"

#include <algorithm>

namespace nibble {

gpu::HostMemory memory_of(const gpu::AdapterInfo& info, const StreamOptions& options) {
  return options.memory.value_or(gpu::usual_host_memory(info));
}

std::filesystem::path stream_folder(const StreamOptions& options) {
  return options.folder.empty() ? gpu::default_cache_dir() : options.folder;
}

Residency residency_of(const std::vector<Residency>& residency, std::uint32_t layer) {
  if (residency.empty()) return Residency::resident;
  check(layer < residency.size(), "residency", "Layer {} was asked for; the list has {}.", layer, residency.size());
  return residency[layer];
}

std::uint32_t count_of(const std::vector<Residency>& residency, std::uint32_t layers, Residency which) {
  if (residency.empty()) return which == Residency::resident ? layers : 0;
  check(residency.size() == layers, "residency", "A list of {} layers came for a model of {}.", residency.size(), layers);
  return static_cast<std::uint32_t>(std::count(residency.begin(), residency.end(), which));
}

TablePlaces table_places(const StreamOptions& options, bool tied) {
  const bool either = options.embedding || options.head;
  return {.embedding_on_host = tied ? either : options.embedding, .head_on_host = tied ? either : options.head};
}

void check_rows_change(const StreamOptions& options) {
  check<UsageError>(!options.embedding && !options.head && options.tables == TableForm::dense, "--train-tokens",
                    "Rows of tokens that are trained are written into embedding and head, which must then stay on the device in 16 bits: leave out "
                    "--embedding-memory host, --head-memory host and --head-bits.");
}

std::string describe_tables(const StreamOptions& options, bool tied) {
  const auto [embedding, head] = table_places(options, tied);
  const bool coded = options.tables != TableForm::dense;
  std::string text;
  if (coded) text = fmt::format(", embedding and head in {} bits", bits_of(options.tables));
  if (embedding && head) return text + (coded ? ", both in host memory" : ", embedding and head in host memory");
  if (embedding || head) text += embedding ? ", the embedding in host memory" : ", the head in host memory";
  return text;
}

std::uint32_t stream_slots(const std::vector<Residency>& residency, std::uint32_t layers, const StreamOptions& options) {
  check<UsageError>(options.slots >= 2, "residency", "Streamed layers share {} slots; give 2 or more.", options.slots);
  const bool direct = options.memory == gpu::HostMemory::direct;
  check<UsageError>(!direct || !options.on_disk, "residency", "Kernels cannot read layers that lie on a disk; leave direct memory out.");
  if (direct) return 0;
  return std::min(options.slots, count_of(residency, layers, Residency::streamed));
}

std::vector<Residency> spread_streamed(std::uint32_t layers, std::uint32_t streamed, Residency rest) {
  check<UsageError>(streamed <= layers, "residency", "{} layers are to be streamed; the model has {}.", streamed, layers);
  std::vector<Residency> all(layers, rest);
  for (std::uint64_t i = 0; i < streamed; ++i) all[(2 * i + 1) * layers / (2 * streamed)] = Residency::streamed;
  return all;
}

std::vector<Residency> choose_residency(std::uint32_t layers, Residency residency, std::optional<std::uint32_t> streamed) {
  const bool all = residency == Residency::streamed;
  return spread_streamed(layers, streamed.value_or(all ? layers : 0), all ? Residency::resident : residency);
}

}  // namespace nibble
