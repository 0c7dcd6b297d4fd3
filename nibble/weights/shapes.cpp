#include "nibble/weights/shapes.h"

#include "nibble/base/error.h"

#include <map>

namespace nibble {

ModelConfig shape_by_name(const std::string& name) {
  const auto qwen3 = [](std::uint32_t hidden, std::uint32_t layers, std::uint32_t heads, std::uint32_t intermediate,
                        bool tied) {
    ModelConfig config;
    config.model_type = "qwen3";
    config.hidden_size = hidden;
    config.num_layers = layers;
    config.vocab_size = 151936;
    config.num_heads = heads;
    config.num_kv_heads = 8;
    config.head_dim = 128;
    config.intermediate_size = intermediate;
    config.rms_norm_eps = 1e-6f;
    config.rope.theta = 1e6f;
    config.max_position_embeddings = 40960;
    config.tie_word_embeddings = tied;
    return config;
  };
  ModelConfig experts = qwen3(2048, 48, 32, 6144, false);
  experts.model_type = "qwen3_moe";
  experts.family = *family_named(experts.model_type);
  experts.num_kv_heads = 4;
  experts.experts = {.count = 128, .per_token = 8, .intermediate_size = 768, .normalised = true};
  const std::map<std::string, ModelConfig> shapes = {{"qwen3-0.6b", qwen3(1024, 28, 16, 3072, true)},
                                                     {"qwen3-1.7b", qwen3(2048, 28, 16, 6144, true)},
                                                     {"qwen3-4b", qwen3(2560, 36, 32, 9728, true)},
                                                     {"qwen3-8b", qwen3(4096, 36, 32, 12288, false)},
                                                     {"qwen3-14b", qwen3(5120, 40, 40, 17408, false)},
                                                     {"qwen3-32b", qwen3(5120, 64, 64, 25600, false)},
                                                     {"qwen3-30b-a3b", experts}};
  const auto found = shapes.find(name);
  std::string names;
  for (const auto& [known, config] : shapes) names += fmt::format("{}{}", names.empty() ? "" : ", ", known);
  check<UsageError>(found != shapes.end(), "--shape", "\"{}\" is no known shape; there are {}.", name, names);
  return found->second;
}

}  // namespace nibble
