#include "nibble/base/error.h"
#include "nibble/cli/info.h"
#include "nibble/io/json.h"
#include "nibble/io/safetensors.h"
#include "nibble/report/progress.h"
#include "nibble/weights/mlx_adapter.h"

#include <fmt/format.h>

#include <cmath>
#include <map>

namespace nibble::cli {
namespace {

// All matrices of one projection, over the layers.
struct TargetFacts {
  std::size_t layers = 0;
  std::uint64_t parameters = 0;
  double a_squares = 0, b_squares = 0;
};

struct AdapterFacts {
  LoraConfig config;
  std::map<Projection, TargetFacts> targets;
  std::uint64_t parameters = 0;
  std::uint64_t head_parameters = 0;  // of a head that was trained with it, also in `parameters`
  std::uint64_t token_parameters = 0;  // of rows of tokens, likewise
};

AdapterFacts read_facts(const InfoFlags& flags) {
  AdapterFacts facts{.config = read_lora_config(flags.adapter)};
  check<DataError>(!is_mlx_adapter(flags.adapter), flags.adapter,
                   "This is an adapter of mlx_lm, which can be used but is not shown; `nibble export --for peft` writes it as PEFT does.");
  const SafetensorsFile file(fs::path(flags.adapter) / "adapter_model.safetensors");
  for (const auto& [name, tensor] : file.tensors()) {
    if (facts.config.saves_head && name == peft_head_tensor_name) {
      facts.head_parameters = tensor.numel();
      facts.parameters += tensor.numel();
      continue;
    }
    if (facts.config.trains_tokens() && (name == peft_token_rows_name || name == peft_head_rows_name)) {
      facts.token_parameters += tensor.numel();
      facts.parameters += tensor.numel();
      continue;
    }
    const bool is_a = name.find(".lora_A.") != name.npos, is_b = name.find(".lora_B.") != name.npos;
    check<DataError>(is_a || is_b || name.ends_with(".lora_magnitude_vector"), file.path().string(), "The tensor {} is no LoRA matrix.",
                     name);
    std::optional<Projection> target;
    for (const Projection p : all_projections) {
      if (name.find(fmt::format(".{}.lora_", name_of(p))) != name.npos) target = p;
    }
    check<DataError>(target.has_value(), file.path().string(),
                     "The tensor {} belongs to no projection that nibble knows.", name);
    double squares = 0;
    for (const float value : file.read_as_f32(tensor)) squares += double(value) * value;
    TargetFacts& into = facts.targets[*target];
    if (is_a || is_b) (is_a ? into.a_squares : into.b_squares) += squares;
    into.layers += is_a ? 1 : 0;
    into.parameters += tensor.numel();
    facts.parameters += tensor.numel();
  }
  if (!flags.model.empty()) load_lora_adapter(flags.adapter, read_model_config(flags.model));
  return facts;
}

std::string tokens_text(const AdapterFacts& facts) {
  const LoraConfig& c = facts.config;
  std::string text = fmt::format("{} trained in the embedding", c.trained_tokens.size());
  if (!c.trained_head_tokens.empty()) text += fmt::format(", {} in the head", c.trained_head_tokens.size());
  return fmt::format("{}, {} parameters", text, grouped(facts.token_parameters));
}

void print_text(const AdapterFacts& facts, bool fits) {
  const LoraConfig& c = facts.config;
  print_fact("base model", c.base_model_name_or_path.empty() ? "not named" : c.base_model_name_or_path);
  if (c.is_uniform()) {
    print_fact("rank", fmt::format("{}, alpha {}{}: B A is scaled by {}", c.rank, c.lora_alpha,
                                   c.use_rslora ? " (rsLoRA)" : "", c.scaling()));
  } else {
    print_fact("rank", fmt::format("{} by {} patterns, alpha {} and {} patterns{}", ranks_text(c), c.rank_pattern.size(), c.lora_alpha,
                                   c.alpha_pattern.size(), c.use_rslora ? " (rsLoRA)" : ""));
  }
  if (c.use_dora) print_fact("kind", "DoRA: the length of each row is the adapter's own");
  if (!c.target_pattern.empty()) print_fact("targets", c.target_pattern);
  if (!c.layers_to_transform.empty()) print_fact("layers", fmt::format("{}", fmt::join(c.layers_to_transform, ", ")));
  print_fact("dropout", fmt::format("{}", c.lora_dropout));
  print_fact("parameters", grouped(facts.parameters));
  if (c.trains_tokens()) print_fact("tokens", tokens_text(facts));
  if (c.saves_head) print_fact("head", fmt::format("trained, {} of them", grouped(facts.head_parameters)));
  if (fits) print_fact("fits the model", "yes");
  fmt::print("\n{:<10} {:>7} {:>12} {:>11} {:>11}\n", "target", "layers", "parameters", "norm of A", "norm of B");
  double b_squares = 0;
  for (const auto& [target, t] : facts.targets) {
    fmt::print("{:<10} {:>7} {:>12} {:>11.5g} {:>11.5g}\n", name_of(target), t.layers, grouped(t.parameters),
               std::sqrt(t.a_squares), std::sqrt(t.b_squares));
    b_squares += t.b_squares;
  }
  if (b_squares == 0 && !c.saves_head && !c.trains_tokens()) fmt::print("Every B is zero: the adapter changes nothing yet.\n");
}

template <typename Value>
Json object_of(const LoraConfig::Pattern<Value>& pattern) {
  Json json = Json::object();
  for (const auto& [key, value] : pattern) json.emplace(key, value);
  return json;
}

Json to_json(const AdapterFacts& facts) {
  const auto number = [](double value) { return std::isfinite(value) ? Json(value) : Json(); };
  Json targets = Json::object();
  for (const auto& [target, t] : facts.targets) {
    targets[std::string(name_of(target))] = {{"layers", t.layers},
                                             {"parameters", t.parameters},
                                             {"norm_a", number(std::sqrt(t.a_squares))},
                                             {"norm_b", number(std::sqrt(t.b_squares))}};
  }
  const LoraConfig& c = facts.config;
  return {{"base_model_name_or_path", c.base_model_name_or_path}, {"rank", c.rank},
          {"lora_alpha", c.lora_alpha},                           {"use_rslora", c.use_rslora},
          {"use_dora", c.use_dora},                               {"target_pattern", c.target_pattern},
          {"scaling", c.is_uniform() ? Json(c.scaling()) : Json()}, {"lora_dropout", c.lora_dropout},
          {"rank_pattern", object_of(c.rank_pattern)},            {"alpha_pattern", object_of(c.alpha_pattern)},
          {"layers_to_transform", c.layers_to_transform},
          {"parameters", facts.parameters},                       {"targets", targets},
          {"trained_tokens", c.trained_tokens},                   {"trained_head_tokens", c.trained_head_tokens},
          {"head_parameters", facts.head_parameters}};
}

}  // namespace

void info_adapter(const InfoFlags& flags) {
  const AdapterFacts facts = read_facts(flags);
  if (flags.json) {
    fmt::print("{}\n", write_json(to_json(facts)));
  } else {
    print_text(facts, !flags.model.empty());
  }
}

}  // namespace nibble::cli
