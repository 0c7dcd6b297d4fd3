#include "nibble/train/step_rates.h"

#include "nibble/base/error.h"
#include "nibble/io/atomic.h"
#include "nibble/io/json.h"
#include "nibble/train/step_bench.h"
#include "nibble/train/step_work.h"

#include <algorithm>

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view file_name = "step-rates.json";
constexpr std::size_t most_file_bytes = std::size_t{1} << 20;

// Of a processor a few tokens say enough, and many take long.
std::uint32_t tokens_to_measure(const gpu::AdapterInfo& info, const ModelConfig& config, std::uint32_t tokens) {
  const std::uint32_t most = info.type == gpu::AdapterType::software ? 64 : 2048;
  return std::clamp(tokens, 1u, std::min(most, config.max_position_embeddings));
}

std::string key_of(const gpu::AdapterInfo& info, ProductPath path, const ModelConfig& config, std::uint32_t tokens) {
  const std::string experts = config.has_experts() ? fmt::format(", {} of {} experts of {}", config.experts.per_token, config.experts.count,
                                                                 config.experts.intermediate_size)
                                                   : "";
  return fmt::format("{} ({}), path {}, hidden {}, intermediate {}, heads {} and {} of {}, tokens {}{}", info.name, info.driver,
                     static_cast<int>(path), config.hidden_size, config.intermediate_size, config.num_heads, config.num_kv_heads,
                     config.head_dim, tokens, experts);
}

Json read_all(const fs::path& file) {
  if (!fs::exists(file)) return Json::object();
  try {
    const Json all = read_json_file(file, {.max_bytes = most_file_bytes});
    if (all.is_object()) return all;
  } catch (const DataError&) {
    // It is written anew.
  }
  return Json::object();
}

// One layer under a vocabulary that costs nothing.
double measure_flops(gpu::Device& device, ProductPath path, ModelConfig config, std::uint32_t tokens) {
  constexpr std::uint32_t rank = 16;
  config.num_layers = 1;
  config.vocab_size = 256;
  config.tie_word_embeddings = true;
  const StepBenchOptions options{.config = config, .path = path, .batch = 1, .length = tokens, .lora_rank = rank, .steps = 3};
  const StepBenchResult result = bench_step(device, options);
  return result.required_flops / *std::min_element(result.seconds.begin(), result.seconds.end());
}

}  // namespace

StepRates usual_rates(const gpu::AdapterInfo& info, ProductPath path, std::uint32_t tokens) {
  if (info.type == gpu::AdapterType::software) return {.flops = 3e10, .memory_bytes = 1e10, .link_bytes = 1e10};
  const bool discrete = info.type == gpu::AdapterType::discrete;
  const double flops = path == ProductPath::matrix ? 1e14 : path == ProductPath::f16 ? 2e13 : 1e13;
  // Small batches leave much of a card idle: a step of 512, 2,048 and 8,192 tokens reached 56, 86 and 100% of the last on an H200.
  const double used = tokens / (tokens + 400.0);
  return {.flops = used * (discrete ? flops : flops / 10), .memory_bytes = discrete ? 1e12 : 1e11, .link_bytes = 2e10};
}

StepRates measured_rates(gpu::Device& device, ProductPath path, const ModelConfig& config, std::uint32_t tokens,
                         const fs::path& folder) {
  StepRates rates = usual_rates(device.info(), path, tokens);
  rates.measured = true;
  tokens = tokens_to_measure(device.info(), config, tokens);
  const fs::path file = folder / file_name;
  const std::string key = key_of(device.info(), path, config, tokens);
  Json all = folder.empty() ? Json::object() : read_all(file);
  if (const auto known = all.find(key); known != all.end() && known->is_number() && known->get<double>() > 0) {
    rates.flops = known->get<double>();
    return rates;
  }
  rates.flops = measure_flops(device, path, config, tokens);
  all[key] = rates.flops;
  std::error_code failed;
  if (!folder.empty()) fs::create_directories(folder, failed);
  if (!folder.empty() && !failed) write_file_atomically(file, write_json(all) + "\n");
  return rates;
}

}  // namespace nibble
