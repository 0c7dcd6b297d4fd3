#include "nibble/report/log_history.h"

#include <fstream>
#include <string>

namespace nibble {
namespace {

// What the speed and the memory of a step are called has no name there.
Json entry_of(const Json& line, double epoch) {
  static constexpr std::pair<const char*, const char*> other_names[] = {
      {"tokens", "num_tokens"}, {"eval_tokens", "eval_num_tokens"}, {"eval_accuracy", "eval_mean_token_accuracy"}};
  Json entry = line;
  entry.erase("tokens_per_second");
  entry.erase("memory_bytes");
  entry["epoch"] = epoch;
  for (const auto& [ours, theirs] : other_names) {
    const auto found = entry.find(ours);
    if (found == entry.end()) continue;
    entry[theirs] = *found;
    entry.erase(ours);
  }
  return entry;
}

}  // namespace

Json log_history(const std::filesystem::path& metrics, std::uint64_t last_step) {
  Json history = Json::array();
  std::ifstream file(metrics);
  double epoch = 0;
  for (std::string text; std::getline(file, text);) {
    const Json line = Json::parse(text, nullptr, false);
    const bool whole = line.is_object() && line.contains("step") && line["step"].is_number_unsigned();
    if (!whole || line["step"].get<std::uint64_t>() > last_step) continue;
    if (line.contains("epoch") && line["epoch"].is_number()) epoch = line["epoch"];
    history.push_back(entry_of(line, epoch));
  }
  return history;
}

}  // namespace nibble
