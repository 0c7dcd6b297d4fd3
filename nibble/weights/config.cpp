#include "nibble/weights/config.h"

#include <algorithm>
#include <cmath>

#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/weights/gguf_model.h"

namespace nibble {
namespace {

// Far above any model there is, and low enough that no product of two overflows.
constexpr JsonObject::IntegerRange any_width{1, 1 << 20};
constexpr JsonObject::IntegerRange any_count{1, 1 << 12};
constexpr JsonObject::IntegerRange any_id{0, INT32_MAX};

std::uint32_t size(const JsonObject& json, std::string_view key, JsonObject::IntegerRange range) {
  return static_cast<std::uint32_t>(json.integer(key, range));
}

std::uint32_t size(const JsonObject& json, std::string_view key, JsonObject::IntegerRange range,
                   std::uint32_t otherwise) {
  return static_cast<std::uint32_t>(json.integer(key, range, otherwise));
}

// transformers has two names for how many experts there are. All layers must have them.
void read_experts(const JsonObject& json, ModelConfig& config) {
  if (!config.family.experts) return;
  const char* key = json.has("num_experts") ? "num_experts" : "num_local_experts";
  ExpertConfig& experts = config.experts;
  experts.count = size(json, key, {1, 1024}, 128);
  experts.per_token = size(json, "num_experts_per_tok", {1, experts.count}, std::min(8u, experts.count));
  experts.intermediate_size = size(json, "moe_intermediate_size", any_width, 768);
  experts.normalised = json.boolean("norm_topk_prob", false);
  if (json.integer("decoder_sparse_step", {0, INT32_MAX}, 1) != 1) {
    json.fail_key("decoder_sparse_step", "1, as layers without experts between those that have them are not supported");
  }
  if (!json.integers("mlp_only_layers", {0, INT32_MAX}).empty()) {
    json.fail_key("mlp_only_layers", "empty, as layers without experts between those that have them are not supported");
  }
  for (const auto& [name, value] : {std::pair{"hidden_size", config.hidden_size}, {"moe_intermediate_size", experts.intermediate_size}}) {
    if (value % 8 != 0) json.fail_key(name, "a multiple of 8, as experts in NF4 are read by eight values");
  }
  const std::uint64_t elements = std::uint64_t{experts.count} * experts.intermediate_size * config.hidden_size;
  check<DataError>(elements <= UINT32_MAX, json.origin(), "The {} experts of a layer have {} elements a projection; at most {} can be counted.",
                   experts.count, elements, UINT32_MAX);
}

// What attention's kernels compute.
void check_head_dim(const JsonObject& json, const ModelConfig& config) {
  if (config.head_dim % 16 == 0 && config.head_dim <= 256) return;
  if (json.has("head_dim")) json.fail_key("head_dim", "a multiple of 16 from 16 to 256");
  fail<DataError>(json.origin(), "hidden_size / num_attention_heads makes heads of {}; they must have a multiple of 16 from 16 to 256.",
                  config.head_dim);
}

// Missing and null differ for families whose class has a number of its own.
std::uint32_t default_kv_heads(const JsonObject& json, const ModelConfig& config) {
  const bool missing = !json.json().contains("num_key_value_heads");
  return missing && config.family.num_key_value_heads ? config.family.num_key_value_heads : config.num_heads;
}

void read_sizes(const JsonObject& json, ModelConfig& config) {
  config.hidden_size = size(json, "hidden_size", any_width);
  config.num_layers = size(json, "num_hidden_layers", any_count);
  config.vocab_size = size(json, "vocab_size", {1, 1 << 24});
  config.num_heads = size(json, "num_attention_heads", any_count);
  const Family& family = config.family;
  config.num_kv_heads = size(json, "num_key_value_heads", any_count, default_kv_heads(json, config));
  config.head_dim = size(json, "head_dim", {2, 1 << 12}, family.head_dim ? family.head_dim : std::max(1u, config.hidden_size / config.num_heads));
  config.intermediate_size = family.experts ? size(json, "intermediate_size", any_width, 6144) : size(json, "intermediate_size", any_width);
  config.max_position_embeddings = size(json, "max_position_embeddings", {1, 1 << 24}, family.max_position_embeddings);
  check_head_dim(json, config);
  read_experts(json, config);
  if (config.num_heads % config.num_kv_heads != 0) {
    json.fail_key("num_key_value_heads", fmt::format("a divisor of num_attention_heads ({})", config.num_heads));
  }
}

// 0.1 * scale * ln(factor) + 1, of the paper of YaRN (arXiv 2309.00071).
double yarn_mscale(double factor, double scale) { return factor <= 1 ? 1.0 : 0.1 * scale * std::log(factor) + 1.0; }

void read_yarn(const JsonObject& json, RopeConfig& rope) {
  constexpr JsonObject::NumberRange positive{1e-6, 1e6};
  check<DataError>(rope.theta > 1, json.origin(), "\"yarn\" needs a rope_theta above 1; found {}.", rope.theta);
  rope.kind = RopeConfig::Kind::yarn;
  rope.beta_fast = json.number("beta_fast", positive, 32.0);
  rope.beta_slow = json.number("beta_slow", positive, 1.0);
  rope.truncate = json.boolean("truncate", true);
  const double mscale = json.number("mscale", {0.0, 1e6}, 0.0), all_dim = json.number("mscale_all_dim", {0.0, 1e6}, 0.0);
  const double own = mscale > 0 && all_dim > 0 ? yarn_mscale(rope.factor, mscale) / yarn_mscale(rope.factor, all_dim) : yarn_mscale(rope.factor, 1);
  rope.attention_factor = json.number("attention_factor", positive, own);
}

void read_rope_kind(const JsonObject& json, const std::string& kind, const char* key, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  if (kind == "default") return;
  rope.factor = json.number("factor", {1.0, 1e6});
  if (kind == "linear") {
    rope.kind = RopeConfig::Kind::linear;
    return;
  }
  rope.original_positions = static_cast<double>(json.integer("original_max_position_embeddings", {1, 1 << 24}, config.max_position_embeddings));
  if (kind == "llama3") {
    constexpr JsonObject::NumberRange positive{1e-6, 1e6};
    rope.kind = RopeConfig::Kind::llama3;
    rope.low_freq_factor = json.number("low_freq_factor", positive);
    rope.high_freq_factor = json.number("high_freq_factor", positive);
    if (rope.high_freq_factor <= rope.low_freq_factor) json.fail_key("high_freq_factor", "above low_freq_factor");
  } else if (kind == "yarn") {
    read_yarn(json, rope);
  } else {
    json.fail_key(key, "\"default\", \"linear\", \"llama3\" or \"yarn\", the kinds of RoPE that are supported");
  }
}

bool is_given(const std::optional<JsonObject>& rope) { return rope && !rope->json().empty(); }

Json without_theta(const JsonObject& rope) {
  Json rest = rope.json();
  rest.erase("rope_theta");
  return rest;
}

// Transformers 4 has rope_theta beside rope_scaling, transformers 5 both in rope_parameters.
void read_rope(const JsonObject& json, ModelConfig& config) {
  constexpr JsonObject::NumberRange theta{1.0, 1e12};
  const auto scaling = json.object("rope_scaling"), parameters = json.object("rope_parameters");
  check<DataError>(!is_given(scaling) || !is_given(parameters) || without_theta(*scaling) == without_theta(*parameters), json.origin(),
                   "\"rope_scaling\" and \"rope_parameters\" differ; only one of them may be given.");
  config.rope.theta = static_cast<float>(json.number("rope_theta", theta, config.family.rope_theta));
  for (const auto* key : {"rope_scaling", "rope_parameters"}) {
    const auto rope = json.object(key);
    if (!rope) continue;
    for (const auto& [name, value] : rope->json().items()) {
      if (value.is_object()) rope->fail_key(name, "a plain value, as RoPE by kind of layer is not supported");
    }
    if (rope->number("partial_rotary_factor", {0.0, 1.0}, 1.0) != 1.0) rope->fail_key("partial_rotary_factor", "1");
    config.rope.theta = static_cast<float>(rope->number("rope_theta", theta, config.rope.theta));
    const char* type_key = rope->has("rope_type") ? "rope_type" : "type";
    read_rope_kind(*rope, rope->string(type_key, "default"), type_key, config);
  }
}

// A list says of each layer whether it rotates; without one an interval does.
void read_nope(const JsonObject& json, ModelConfig& config) {
  if (config.family.nope_interval == 0) return;
  const auto rotating = json.integers("no_rope_layers", {0, 1});
  if (json.has("no_rope_layers") && rotating.size() < config.num_layers) {
    json.fail_key("no_rope_layers", fmt::format("a list of at least {} numbers, one a layer", config.num_layers));
  }
  const std::uint32_t interval = size(json, "no_rope_layer_interval", any_count, config.family.nope_interval);
  for (std::uint32_t layer = 0; layer < config.num_layers; ++layer) {
    config.nope.push_back(rotating.empty() ? (layer + 1) % interval == 0 : rotating[layer] == 0);
  }
}

// Null is none; Mistral's class takes a window where the key is missing.
void read_window(const JsonObject& json, ModelConfig& config) {
  if (!config.family.sliding_window) return;
  const bool missing = !json.json().contains("sliding_window");
  config.sliding_window = missing ? config.family.window : size(json, "sliding_window", {1, 1 << 24}, 0);
}

// Qwen's classes have windows from layer max_window_layers on, SmolLM3's in layers that do not rotate; a list of layer_types is what
// counts where there is one.
bool some_layers_have_windows(const JsonObject& json, const ModelConfig& config) {
  constexpr std::int64_t class_default = 28;
  if (!json.boolean("use_sliding_window", false) || json.has("layer_types")) return false;
  if (config.family.nope_interval > 0) {
    return json.has("sliding_window") && std::find(config.nope.begin(), config.nope.end(), true) != config.nope.end();
  }
  if (json.json().contains("sliding_window") && !json.has("sliding_window")) return false;
  return json.integer("max_window_layers", {0, 1 << 12}, class_default) < config.num_layers;
}

void refuse_what_is_not_supported(const JsonObject& json, const ModelConfig& config) {
  if (json.string("hidden_act", "silu") != "silu") json.fail_key("hidden_act", "\"silu\"");
  for (const char* bias : {"attention_bias", "mlp_bias"}) {
    if (json.boolean(bias, false)) json.fail_key(bias, "false");
  }
  if (some_layers_have_windows(json, config)) {
    const std::string otherwise = config.family.nope_interval > 0 ? "" : fmt::format(", or \"max_window_layers\" at least {}", config.num_layers);
    json.fail_key("use_sliding_window", fmt::format("false{}, as windows in some layers alone are not supported", otherwise));
  }
  if (json.number("partial_rotary_factor", {0.0, 1.0}, 1.0) != 1.0) json.fail_key("partial_rotary_factor", "1");
  const auto layer_types = json.strings("layer_types");
  if (!layer_types.empty() && layer_types.size() != config.num_layers) {
    json.fail_key("layer_types", fmt::format("a list of {} strings, one a layer", config.num_layers));
  }
  const std::string kind = config.sliding_window > 0 ? "sliding_attention" : "full_attention";
  const auto other = std::find_if(layer_types.begin(), layer_types.end(), [&](auto& t) { return t != kind; });
  check<DataError>(other == layer_types.end(), json.origin(), "The key \"layer_types\" must hold \"{}\" only; found \"{}\".", kind,
                   other == layer_types.end() ? "" : *other);
  if (json.number("attention_dropout", {0.0, 1.0}, 0.0) != 0.0) {
    log_warning(fmt::format("[{}] \"attention_dropout\" is not applied. Set it to 0 to silence this.", json.origin()));
  }
}

std::vector<std::uint32_t> read_ids(const JsonObject& json, std::string_view key, std::uint32_t vocab_size) {
  std::vector<std::uint32_t> ids;
  for (const auto id : json.integers(key, any_id)) {
    check<DataError>(id < vocab_size, json.origin(), "The key \"{}\" holds {}, but the vocabulary has {} entries.", key,
                     id, vocab_size);
    ids.push_back(static_cast<std::uint32_t>(id));
  }
  return ids;
}

GenerationDefaults read_generation(const JsonObject& json) {
  GenerationDefaults defaults;
  defaults.do_sample = json.boolean("do_sample", false);
  if (json.has("temperature")) defaults.temperature = static_cast<float>(json.number("temperature", {0.0, 1000.0}));
  if (json.has("top_k")) defaults.top_k = size(json, "top_k", any_id);
  if (json.has("top_p")) defaults.top_p = static_cast<float>(json.number("top_p", {0.0, 1.0}));
  if (json.has("min_p")) defaults.min_p = static_cast<float>(json.number("min_p", {0.0, 1.0}));
  if (json.has("repetition_penalty")) {
    defaults.repetition_penalty = static_cast<float>(json.number("repetition_penalty", {1e-3, 1000.0}));
  }
  return defaults;
}

void fill_from(Json& json, const Json& defaults, const std::string& origin) {
  if (!json.is_object()) return;
  for (const auto& [key, value] : defaults.items()) {
    if (json.contains(key) && !json[key].is_null()) continue;
    log_warning(fmt::format("[{}] \"{}\" is missing and taken to be {}. Add it to the file to silence this.", origin, key,
                            value.dump()));
    json[key] = value;
  }
}

}  // namespace

ModelConfig parse_model_config(const JsonObject& json, const JsonObject* generation) {
  ModelConfig config;
  config.model_type = json.string("model_type");
  const Family* family = family_named(config.model_type);
  if (!family) {
    std::string names;
    for (const Family& known : families) names += fmt::format("{}\"{}\"", names.empty() ? "" : ", ", known.model_type);
    json.fail_key("model_type", fmt::format("one of {}, the families that are supported", names));
  }
  config.family = *family;
  read_sizes(json, config);
  read_window(json, config);
  read_nope(json, config);
  config.rms_norm_eps = static_cast<float>(json.number("rms_norm_eps", {1e-12, 1.0}, 1e-6));
  config.tie_word_embeddings = json.boolean("tie_word_embeddings", config.family.tied);
  read_rope(json, config);
  refuse_what_is_not_supported(json, config);
  config.fp8 = read_quantization(json);
  config.eos_token_ids = read_ids(json, "eos_token_id", config.vocab_size);
  if (generation != nullptr) {
    const auto ids = read_ids(*generation, "eos_token_id", config.vocab_size);
    if (!ids.empty()) config.eos_token_ids = ids;
    config.generation = read_generation(*generation);
  }
  return config;
}

ModelConfig read_model_config(const fs::path& model, const Json& defaults) {
  if (is_gguf(model)) {
    const Json json = config_of_gguf(GgufFile(model));
    return parse_model_config(JsonObject(json, model.string()));
  }
  constexpr JsonLimits limits{.max_bytes = std::size_t{16} << 20};
  const auto path = model / "config.json";
  check<DataError>(path_exists(model), model.string(),
                   "There is no such folder or file; a Hugging Face model folder, or a GGUF file, is expected. Models are not fetched.");
  std::error_code ignored;
  check<DataError>(!fs::is_regular_file(model, ignored), model.string(),
                   "This is a file, but not in GGUF; a Hugging Face model folder, or a GGUF file, is expected.");
  check<DataError>(path_exists(path), model.string(),
                   "The folder has no config.json; a Hugging Face model folder, or a GGUF file, is expected.");
  Json json = read_json_file(path, limits);
  fill_from(json, defaults, path.string());
  const auto generation_path = model / "generation_config.json";
  if (!path_exists(generation_path)) return parse_model_config(JsonObject(json, path.string()));
  const Json generation_json = read_json_file(generation_path, limits);
  const JsonObject generation(generation_json, generation_path.string());
  return parse_model_config(JsonObject(json, path.string()), &generation);
}

bool has_bias(const ModelConfig& config, Projection projection) { return config.family.qkv_bias && projection < Projection::o; }

ProjectionDims projection_dims(const ModelConfig& config, Projection projection) {
  const std::uint32_t hidden = config.hidden_size;
  const std::uint32_t heads = config.num_heads * config.head_dim;
  const std::uint32_t kv_heads = config.num_kv_heads * config.head_dim;
  const std::uint32_t intermediate = config.has_experts() ? config.experts.intermediate_size : config.intermediate_size;
  switch (projection) {
    case Projection::q: return {heads, hidden};
    case Projection::k:
    case Projection::v: return {kv_heads, hidden};
    case Projection::o: return {hidden, heads};
    case Projection::gate:
    case Projection::up: return {intermediate, hidden};
    case Projection::down: return {hidden, intermediate};
  }
  return {};
}

std::span<const Projection> single_projections(const ModelConfig& config) {
  return std::span(all_projections).first(config.has_experts() ? static_cast<std::size_t>(Projection::gate) : all_projections.size());
}

}  // namespace nibble
