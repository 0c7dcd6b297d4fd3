#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/io/json.h"
#include "nibble/weights/mlx_adapter.h"
#include "nibble/weights/peft.h"

namespace nibble {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr JsonLimits config_limits{.max_bytes = std::size_t{1} << 20};

// Keys that change what the adapter computes; each must be absent, null, false or empty.
constexpr std::array must_be_unset{
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "layer_replication",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
};

bool is_unset(const Json& value) {
  return value.is_null() || (value.is_boolean() && !value.get<bool>()) || (value.is_structured() && value.empty());
}

bool is_missing(const JsonObject& json, std::string_view key) { return !json.has(key) || is_unset(json.json()[key]); }

void refuse_what_is_not_supported(const JsonObject& json) {
  if (json.string("peft_type", "LORA") != "LORA") json.fail_key("peft_type", "\"LORA\"");
  if (json.string("bias", "none") != "none") json.fail_key("bias", "\"none\"");
  for (const auto* key : must_be_unset) {
    if (json.has(key) && !is_unset(json.json()[key])) json.fail_key(key, "unset, as this feature is not supported");
  }
  // These starts are drawn beside the base; the others (pissa, olora, corda, loftq, lora_ga) change the base itself.
  if (json.has("init_lora_weights") && !json.json()["init_lora_weights"].is_boolean()) {
    const auto start = json.string("init_lora_weights");
    if (start != "gaussian" && start != "eva" && start != "orthogonal") {
      json.fail_key("init_lora_weights",
                    "true, false, \"gaussian\", \"eva\" or \"orthogonal\", as others change the base");
    }
  }
}

// Whether the head was trained too; other modules are refused.
bool saves_head(const JsonObject& json) {
  constexpr std::string_view key = "modules_to_save";
  if (!json.has(key) || is_unset(json.json()[key])) return false;
  if (json.json()[key] != Json::array({"lm_head"})) {
    json.fail_key(key, "unset or [\"lm_head\"], as no other module is supported");
  }
  return true;
}

// Distinct ids; whether the model has them is seen when it is known.
std::vector<std::uint32_t> token_ids(const JsonObject& json, std::string_view key) {
  std::vector<std::uint32_t> ids;
  for (const auto id : json.integers(key, {0, text::max_token_id})) ids.push_back(static_cast<std::uint32_t>(id));
  std::vector<std::uint32_t> sorted = ids;
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) json.fail_key(key, "a list in which no token comes twice");
  return ids;
}

// A list stands for the embedding; an object names the tables, by their modules' names or the ends of these.
void read_trained_tokens(const JsonObject& json, LoraConfig& config) {
  constexpr std::string_view key = "trainable_token_indices";
  if (is_missing(json, key)) return;
  if (config.saves_head) json.fail_key(key, "unset where modules_to_save is [\"lm_head\"], as both together are not supported");
  if (!json.json()[key].is_object()) {
    config.trained_tokens = token_ids(json, key);
    return;
  }
  const JsonObject tables = *json.object(key);
  for (const auto& [name, unused] : tables.json().items()) {
    const bool embedding = name == "embed_tokens" || name.ends_with(".embed_tokens"), head = name == "lm_head";
    if (!embedding && !head) json.fail_key(key, "a list, or an object with the keys \"embed_tokens\" and \"lm_head\"");
    (embedding ? config.trained_tokens : config.trained_head_tokens) = token_ids(tables, name);
  }
}

// "q_proj", or with its block before it: "self_attn.q_proj".
std::optional<Projection> projection_of_target(std::string_view target) {
  const auto dot = target.find('.');
  const auto projection = projection_named(dot == target.npos ? target : target.substr(dot + 1));
  if (projection && dot != target.npos && target.substr(0, dot) != block_of(*projection)) return std::nullopt;
  return projection;
}

// A text is a pattern, but for "all-linear".
void read_targets(const JsonObject& json, LoraConfig& config) {
  constexpr std::string_view key = "target_modules";
  if (json.has(key) && json.json()[key].is_string()) {
    config.target_modules.assign(all_projections.begin(), all_projections.end());
    if (json.string(key) == "all-linear") return;
    config.target_pattern = json.string(key);
    if (config.target_pattern.empty()) json.fail_key(key, "a pattern that is not empty");
    if (!is_missing(json, "layers_to_transform")) json.fail_key("layers_to_transform", "unset, as target_modules is a pattern, which names layers itself");
    return;
  }
  std::vector<Projection> targets;
  for (const auto& name : json.strings(key)) {
    const auto projection = projection_of_target(name);
    check<DataError>(
        projection.has_value(), json.origin(),
        "The key \"target_modules\" holds \"{}\"; supported are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj "
        "and down_proj.",
        name);
    targets.push_back(*projection);
  }
  std::sort(targets.begin(), targets.end());
  targets.erase(std::unique(targets.begin(), targets.end()), targets.end());
  if (targets.empty()) json.fail_key(key, "a list of at least one name");
  config.target_modules = std::move(targets);
}

void read_exclusions(const JsonObject& json, LoraConfig& config) {
  constexpr std::string_view key = "exclude_modules";
  if (is_missing(json, key)) return;
  if (json.json()[key].is_string()) {
    config.exclude_pattern = json.string(key);
  } else {
    config.exclude_modules = json.strings(key);
  }
}

constexpr JsonObject::IntegerRange ranks{1, 1 << 16};
constexpr JsonObject::NumberRange alphas{0.0, 1e9};

// In the order of the file, in which PEFT tries them.
template <typename Value, typename Read>
LoraConfig::Pattern<Value> read_pattern(const JsonObject& json, const OrderedJson& ordered, const std::string& key, Read&& read) {
  LoraConfig::Pattern<Value> pattern;
  const auto object = json.object(key);
  if (!object) return pattern;
  for (const auto& [name, unused] : ordered.at(key).items()) pattern.emplace_back(name, read(*object, name));
  return pattern;
}

// PEFT passes over indices that the model has not; here they are refused when the model is known.
std::vector<std::uint32_t> read_layers(const JsonObject& json) {
  std::vector<std::uint32_t> layers;
  for (const auto layer : json.integers("layers_to_transform", {0, 1 << 12})) layers.push_back(static_cast<std::uint32_t>(layer));
  std::sort(layers.begin(), layers.end());
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  if (json.has("layers_pattern") && !is_unset(json.json()["layers_pattern"])) {
    const Json& pattern = json.json()["layers_pattern"];
    const bool known = pattern == "layers" || (pattern.is_array() && std::find(pattern.begin(), pattern.end(), "layers") != pattern.end());
    if (!known) json.fail_key("layers_pattern", "unset or \"layers\", as the layers of these models are called");
  }
  return layers;
}

}  // namespace

LoraConfig read_lora_config(const fs::path& folder) {
  if (is_mlx_adapter(folder)) return read_mlx_config(folder);
  const auto path = folder / "adapter_config.json";
  check<DataError>(path_exists(folder), folder.string(), "There is no such folder; an adapter's, of PEFT or mlx_lm, is expected.");
  check<DataError>(fs::is_directory(folder), folder.string(), "This is a file; an adapter is read from its folder, of PEFT or mlx_lm.");
  check<DataError>(path_exists(path), folder.string(),
                   "The folder has no adapter_config.json; an adapter of PEFT or mlx_lm is expected.");
  const Json parsed = read_json_file(path, config_limits);
  const auto ordered = OrderedJson::parse(read_file(path, config_limits.max_bytes));  // which has just been parsed in another order
  const JsonObject json(parsed, path.string());
  refuse_what_is_not_supported(json);
  LoraConfig config;
  config.base_model_name_or_path = json.string("base_model_name_or_path", "");
  config.rank = static_cast<std::uint32_t>(json.integer("r", ranks));
  config.lora_alpha = json.number("lora_alpha", alphas);
  config.lora_dropout = json.number("lora_dropout", {0.0, 1.0}, 0.0);
  config.use_rslora = json.boolean("use_rslora", false);
  config.use_dora = json.boolean("use_dora", false);
  config.saves_head = saves_head(json);
  read_trained_tokens(json, config);
  read_targets(json, config);
  read_exclusions(json, config);
  config.rank_pattern = read_pattern<std::uint32_t>(json, ordered, "rank_pattern", [](const JsonObject& object, const std::string& name) {
    return static_cast<std::uint32_t>(object.integer(name, ranks));
  });
  config.alpha_pattern = read_pattern<double>(
      json, ordered, "alpha_pattern", [](const JsonObject& object, const std::string& name) { return object.number(name, alphas); });
  config.layers_to_transform = read_layers(json);
  return config;
}

}  // namespace nibble
