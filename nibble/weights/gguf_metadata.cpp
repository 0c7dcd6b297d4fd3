#include "nibble/weights/gguf_metadata.h"

#include <cmath>

#include "nibble/base/error.h"

namespace nibble {
namespace {

constexpr std::uint32_t quantization_version = 2;  // of the block formats (ggml.h)

// What most matrices are (llama.h, enum llama_ftype).
std::uint32_t file_type(GgmlType matrices) {
  switch (matrices) {
    case GgmlType::f32: return 0;
    case GgmlType::f16: return 1;
    case GgmlType::q4_0: return 2;
    case GgmlType::q8_0: return 7;
    case GgmlType::bf16: return 32;
    default: fail("gguf_model_metadata", "Models are not written in {}.", info_of(matrices).name);
  }
}

std::string name_of_model(const fs::path& model) {
  const fs::path whole = fs::absolute(model).lexically_normal();
  const std::string name =
      is_gguf(model) ? gguf_model_name(model) : (whole.has_filename() ? whole : whole.parent_path()).filename().string();
  return name.empty() ? "model" : name;
}

void add_rope(const ModelConfig& config, const std::string& architecture, const std::string& where, GgufMetadata& to) {
  const RopeConfig& rope = config.rope;
  const auto key = [&](std::string_view name) { return fmt::format("{}.rope.{}", architecture, name); };
  to.emplace_back(key("freq_base"), rope.theta);
  to.emplace_back(key("dimension_count"), config.head_dim);
  if (rope.kind == RopeConfig::Kind::standard || rope.kind == RopeConfig::Kind::llama3)
    return;  // that one has a tensor
  to.emplace_back(key("scaling.type"), std::string(rope.kind == RopeConfig::Kind::linear ? "linear" : "yarn"));
  to.emplace_back(key("scaling.factor"), static_cast<float>(rope.factor));
  if (rope.kind == RopeConfig::Kind::linear) return;
  const double own = 0.1 * std::log(rope.factor) + 1.0;
  check<DataError>(
      rope.truncate && std::abs(rope.attention_factor - own) < 1e-6, where,
      "The RoPE scaling \"yarn\" has an attention factor of {} and truncate {}; llama.cpp takes {} and true.",
      rope.attention_factor, rope.truncate, own);
  to.emplace_back(key("scaling.original_context_length"), static_cast<std::uint32_t>(rope.original_positions));
  to.emplace_back(key("scaling.yarn_beta_fast"), static_cast<float>(rope.beta_fast));
  to.emplace_back(key("scaling.yarn_beta_slow"), static_cast<float>(rope.beta_slow));
}

}  // namespace

std::string gguf_architecture(const ModelConfig& config) {
  return config.model_type == "mistral" ? "llama" : config.model_type == "qwen3_moe" ? "qwen3moe" : config.model_type;
}

void check_for_llama_cpp(const ModelConfig& config, const std::string& where) {
  check<DataError>(!config.has_experts() || config.experts.normalised, where,
                   "\"norm_topk_prob\" is false, but llama.cpp always divides the weights of a token's experts by their sum; write a folder instead.");
  constexpr std::uint32_t interval = 4;
  for (std::uint32_t layer = 0; layer < config.nope.size(); ++layer) {
    check<DataError>(config.nope[layer] == ((layer + 1) % interval == 0), where,
                     "Layer {} {} its queries and keys; llama.cpp rotates those of all layers of {} but every fourth.", layer,
                     config.nope[layer] ? "does not rotate" : "rotates", config.model_type);
  }
  check<DataError>(config.nope.empty() || config.rope.kind != RopeConfig::Kind::llama3, where,
                   "The RoPE scaling is \"llama3\", which llama.cpp does not apply to {}.", config.model_type);
}

std::vector<std::string> llama_cpp_notes(const ModelConfig& config) {
  if (config.sliding_window == 0 || config.sliding_window >= config.max_position_embeddings) return {};
  return {
      fmt::format("llama.cpp does not apply this model's sliding window: beyond {} tokens it computes something else, "
                  "so keep texts below.",
                  config.sliding_window)};
}

GgufMetadata gguf_model_metadata(const ModelConfig& config, const fs::path& model, GgmlType matrices) {
  check_for_llama_cpp(config, model.string());
  const std::string architecture = gguf_architecture(config);
  const auto key = [&](std::string_view name) { return fmt::format("{}.{}", architecture, name); };
  GgufMetadata metadata{{"general.architecture", architecture},
                        {"general.type", std::string("model")},
                        {"general.name", name_of_model(model)},
                        {"general.file_type", file_type(matrices)},
                        {"general.quantization_version", quantization_version},
                        {key("vocab_size"), config.vocab_size},
                        {key("context_length"), config.max_position_embeddings},
                        {key("embedding_length"), config.hidden_size},
                        {key("block_count"), config.num_layers},
                        {key("feed_forward_length"), config.intermediate_size},
                        {key("attention.head_count"), config.num_heads},
                        {key("attention.head_count_kv"), config.num_kv_heads},
                        {key("attention.key_length"), config.head_dim},
                        {key("attention.value_length"), config.head_dim},
                        {key("attention.layer_norm_rms_epsilon"), config.rms_norm_eps}};
  if (config.has_experts()) {
    metadata.emplace_back(key("expert_count"), config.experts.count);
    metadata.emplace_back(key("expert_used_count"), config.experts.per_token);
    metadata.emplace_back(key("expert_feed_forward_length"), config.experts.intermediate_size);
  }
  if (config.sliding_window > 0) metadata.emplace_back(key("attention.sliding_window"), config.sliding_window);
  add_rope(config, architecture, model.string(), metadata);
  return metadata;
}

}  // namespace nibble
