#include <algorithm>
#include <cmath>
#include <map>

#include "nibble/base/error.h"
#include "nibble/io/atomic.h"
#include "nibble/io/file.h"
#include "nibble/io/json.h"
#include "nibble/io/safetensors.h"
#include "nibble/weights/peft.h"

namespace nibble {
namespace {

// PEFT writes alpha as it was given, which is nearly always an integer.
Json number(double value) {
  constexpr double exact_integers = 0x1p53;
  if (std::trunc(value) == value && std::abs(value) < exact_integers) return static_cast<std::int64_t>(value);
  return value;
}

// As the file has it, whose keys are sorted.
template <typename Value>
Json pattern_json(LoraConfig::Pattern<Value> pattern) {
  Json json = Json::object();
  for (const auto& [key, value] : pattern) json.emplace(key, number(value));  // of equal keys the first counts
  return json;
}

bool equal(const LoraModules& a, const LoraModules& b) {
  const auto same = [](const LoraModule& x, const LoraModule& y) { return x.rank == y.rank && x.scaling == y.scaling; };
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [&](const auto& x, const auto& y) { return std::equal(x.begin(), x.end(), y.begin(), same); });
}

// The first key that matches counts, and JSON is written in the order of names: where that would change what holds, each module
// gets keys of its own.
LoraConfig with_patterns_for_file(const LoraAdapter& adapter) {
  LoraConfig config = adapter.config;
  std::stable_sort(config.rank_pattern.begin(), config.rank_pattern.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::stable_sort(config.alpha_pattern.begin(), config.alpha_pattern.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  const LoraModules modules = adapter.modules();
  if (equal(modules, modules_of(config, static_cast<std::uint32_t>(modules.size())))) return config;
  config.rank_pattern.clear();
  config.alpha_pattern.clear();
  for (std::uint32_t layer = 0; layer < modules.size(); ++layer) {
    for (const Projection projection : config.target_modules) {
      const LoraModule& module = modules[layer][static_cast<std::size_t>(projection)];
      if (!module.used()) continue;
      const double divisor = config.use_rslora ? std::sqrt(module.rank) : module.rank;
      config.rank_pattern.emplace_back(projection_module_name(layer, projection), module.rank);
      config.alpha_pattern.emplace_back(projection_module_name(layer, projection), module.scaling * divisor);
    }
  }
  return config;
}

// Only the keys that every PEFT since 0.10 knows: an older one warns at each newer key.
Json config_json(const LoraConfig& config) {
  std::vector<std::string> targets;
  for (const Projection projection : config.target_modules) targets.emplace_back(name_of(projection));
  std::sort(targets.begin(), targets.end());
  Json json = {
      {"alpha_pattern", pattern_json(config.alpha_pattern)},
      {"base_model_name_or_path", config.base_model_name_or_path},
      {"bias", "none"},
      {"fan_in_fan_out", false},
      {"inference_mode", true},
      {"init_lora_weights", true},
      {"layers_pattern", nullptr},
      {"layers_to_transform", config.layers_to_transform.empty() ? Json() : Json(config.layers_to_transform)},
      {"lora_alpha", number(config.lora_alpha)},
      {"lora_dropout", config.lora_dropout},
      {"modules_to_save", config.saves_head ? Json::array({"lm_head"}) : Json()},
      {"peft_type", "LORA"},
      {"r", config.rank},
      {"rank_pattern", pattern_json(config.rank_pattern)},
      {"revision", nullptr},
      {"target_modules", config.target_pattern.empty() ? Json(targets) : Json(config.target_pattern)},
      {"task_type", "CAUSAL_LM"},
      {"use_dora", config.use_dora},
      {"use_rslora", config.use_rslora},
  };
  // Known since PEFT 0.15.
  if (config.trained_head_tokens.empty() && config.trains_tokens()) json["trainable_token_indices"] = config.trained_tokens;
  if (!config.trained_head_tokens.empty()) {
    Json& tables = json["trainable_token_indices"] = {{"lm_head", config.trained_head_tokens}};
    if (!config.trained_tokens.empty()) tables["embed_tokens"] = config.trained_tokens;
  }
  // Known since PEFT 0.14.
  if (!config.exclude_pattern.empty()) json["exclude_modules"] = config.exclude_pattern;
  if (!config.exclude_modules.empty()) json["exclude_modules"] = config.exclude_modules;
  return json;
}

// A YAML scalar: JSON's strings are valid there.
std::string yaml(const std::string& text) { return write_json_line(text); }

// By which a card is known again.
constexpr std::string_view card_sentence = "trained with nibble on the base in 4 bits (NF4).";

std::string card(const LoraConfig& config) {
  constexpr std::string_view head_text =
      " The head (`lm_head`) was trained with it and is stored here whole, in place of the base's; where the base ties it "
      "to the embedding, only the embedding stays as it is.";
  constexpr std::string_view tokens_text = " It brings its own rows of the embedding ({}){}.";
  const auto& base = config.base_model_name_or_path;
  const std::string more =
      !config.trains_tokens() ? std::string(config.saves_head ? head_text : "")
                              : fmt::format(tokens_text, config.trained_tokens.size(),
                                            config.trained_head_tokens.empty() ? "" : fmt::format(" and of the head ({})", config.trained_head_tokens.size()));
  return fmt::format(
      "---\n"
      "base_model: {}\n"
      "library_name: peft\n"
      "pipeline_tag: text-generation\n"
      "tags:\n"
      "- {}\n"
      "- lora\n"
      "---\n\n"
      "# LoRA adapter\n\n"
      "A {} adapter of rank {} for `{}`, {}{} Load it with PEFT:\n\n"
      "```python\n"
      "from peft import PeftModel\n"
      "from transformers import AutoModelForCausalLM\n\n"
      "base = AutoModelForCausalLM.from_pretrained({})\n"
      "model = PeftModel.from_pretrained(base, \"PATH_TO_THIS_FOLDER\")\n"
      "```\n",
      yaml(base), yaml("base_model:adapter:" + base), config.use_dora ? "DoRA" : "LoRA", ranks_text(config), base, card_sentence, more,
      yaml(base));
}

using Values = std::map<std::string, std::span<const float>>;

void add_token_rows(const std::vector<std::uint32_t>& ids, const std::vector<float>& rows, std::string_view name, std::vector<TensorSpec>& specs,
                    Values& values) {
  if (ids.empty()) return;
  check(!rows.empty() && rows.size() % ids.size() == 0, "save_lora_adapter", "The rows of {} trained tokens have {} values.", ids.size(), rows.size());
  const auto count = static_cast<std::int64_t>(ids.size());
  specs.push_back({std::string(name), DType::f32, {count, static_cast<std::int64_t>(rows.size()) / count}});
  values.emplace(name, rows);
}

void write_weights(const fs::path& path, const LoraAdapter& adapter) {
  Values values;
  std::vector<TensorSpec> specs;
  const LoraModules modules = adapter.modules();
  for (std::uint32_t layer = 0; layer < adapter.layers.size(); ++layer) {
    for (const Projection projection : adapter.config.target_modules) {
      const std::int64_t rank = modules[layer][static_cast<std::size_t>(projection)].rank;
      if (rank == 0) continue;
      const auto& matrices = adapter.at(layer, projection);
      const auto modules_here = module_names(adapter.experts, layer, projection);
      const auto kinds = lora_matrices(adapter.config.use_dora);
      for (std::size_t i = 0; i < kinds.size() * modules_here.size(); ++i) {
        const LoraMatrix matrix = kinds[i % kinds.size()];
        const std::size_t index = i / kinds.size();
        const auto name = peft_tensor_name(modules_here[index], matrix);
        const auto data = LoraAdapter::part_of(matrices.matrix(matrix), static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(modules_here.size()));
        const std::int64_t size = static_cast<std::int64_t>(data.size()), other = size / rank;
        const bool vector = matrix == LoraMatrix::magnitude;
        check(!data.empty() && (vector || other * rank == size), "save_lora_adapter",
              "The matrix {} has {} values, which is no multiple of the rank {}.", name, data.size(), rank);
        values.emplace(name, data);
        specs.push_back({name, DType::f32, vector ? Shape{size} : matrix == LoraMatrix::a ? Shape{rank, other} : Shape{other, rank}});
      }
    }
  }
  add_token_rows(adapter.config.trained_tokens, adapter.token_rows, peft_token_rows_name, specs, values);
  add_token_rows(adapter.config.trained_head_tokens, adapter.head_rows, peft_head_rows_name, specs, values);
  if (adapter.head) {
    specs.push_back({std::string(peft_head_tensor_name), DType::f32, {adapter.head->rows, adapter.head->columns}});
  }
  SafetensorsWriter writer(path, specs);
  for (const auto& spec : writer.tensors()) {
    if (spec.name == peft_head_tensor_name) {
      adapter.head->read([&](std::span<const float> piece, std::uint64_t) { writer.append(std::as_bytes(piece)); });
    } else {
      writer.append(std::as_bytes(values.at(spec.name)));
    }
  }
  writer.finish();
}

}  // namespace

void save_lora_adapter(const fs::path& folder, const LoraAdapter& adapter) {
  check(adapter.config.saves_head == adapter.head.has_value(), "save_lora_adapter",
        "The adapter's config and its matrices must agree on whether it brings a head.");
  write_weights(folder / "adapter_model.safetensors", adapter);
  write_file_atomically(folder / "adapter_config.json", write_json(config_json(with_patterns_for_file(adapter))));
  const fs::path readme = folder / "README.md";
  if (!path_exists(readme) || is_adapter_card(readme)) write_file_atomically(readme, card(adapter.config));
  text::write_tokenizer_files(folder, adapter.tokenizer);
}

bool is_adapter_card(const fs::path& path) {
  constexpr std::uint64_t largest_card = 1 << 16;
  std::error_code error;
  return fs::is_regular_file(path, error) && fs::file_size(path, error) <= largest_card && read_file(path, largest_card).find(card_sentence) != std::string::npos;
}

}  // namespace nibble
