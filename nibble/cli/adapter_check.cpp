#include "nibble/cli/adapter_check.h"

#include "nibble/base/error.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

namespace nibble::cli {
namespace {

// What one option says of an adapter.
struct Part {
  const char* option;
  const char* what;
  void (*take)(LoraConfig& to, const LoraConfig& from);
  std::string (*text)(const LoraConfig& lora);
};

std::string modules_text(const LoraConfig& lora) {
  std::vector<std::string_view> names;
  for (const Projection p : lora.target_modules) names.push_back(nibble::name_of(p));
  std::string text = lora.target_pattern.empty() ? fmt::format("{}", fmt::join(names, ",")) : lora.target_pattern;
  if (!lora.exclude_modules.empty()) text += fmt::format(" without {}", fmt::join(lora.exclude_modules, ","));
  if (!lora.exclude_pattern.empty()) text += " without " + lora.exclude_pattern;
  return text;
}

template <typename Value>
std::string pattern_text(const LoraConfig::Pattern<Value>& pattern) {
  std::string text;
  for (const auto& [key, value] : pattern) text += fmt::format("{}{}={}", text.empty() ? "" : " ", key, value);
  return text.empty() ? "none" : text;
}

void take_modules(LoraConfig& to, const LoraConfig& from) {
  to.target_modules = from.target_modules;
  to.target_pattern = from.target_pattern;
  to.exclude_modules.clear();
  to.exclude_pattern.clear();
}

constexpr std::array parts{
    Part{"lora-rank", "rank", [](LoraConfig& to, const LoraConfig& from) { to.rank = from.rank; },
         [](const LoraConfig& lora) { return fmt::format("{}", lora.rank); }},
    Part{"lora-alpha", "alpha", [](LoraConfig& to, const LoraConfig& from) { to.lora_alpha = from.lora_alpha; },
         [](const LoraConfig& lora) { return fmt::format("{}", lora.lora_alpha); }},
    Part{"use-rslora", "scale", [](LoraConfig& to, const LoraConfig& from) { to.use_rslora = from.use_rslora; },
         [](const LoraConfig& lora) { return std::string(lora.use_rslora ? "alpha / sqrt(r)" : "alpha / r"); }},
    Part{"use-dora", "kind", [](LoraConfig& to, const LoraConfig& from) { to.use_dora = from.use_dora; },
         [](const LoraConfig& lora) { return std::string(lora.use_dora ? "DoRA" : "LoRA"); }},
    Part{"target-modules", "list of modules", take_modules, modules_text},
    Part{"layers-to-transform", "list of layers", [](LoraConfig& to, const LoraConfig& from) { to.layers_to_transform = from.layers_to_transform; },
         [](const LoraConfig& lora) {
           return lora.layers_to_transform.empty() ? std::string("all") : fmt::format("{}", fmt::join(lora.layers_to_transform, ","));
         }},
    Part{"rank-pattern", "rank pattern", [](LoraConfig& to, const LoraConfig& from) { to.rank_pattern = from.rank_pattern; },
         [](const LoraConfig& lora) { return pattern_text(lora.rank_pattern); }},
    Part{"alpha-pattern", "alpha pattern", [](LoraConfig& to, const LoraConfig& from) { to.alpha_pattern = from.alpha_pattern; },
         [](const LoraConfig& lora) { return pattern_text(lora.alpha_pattern); }},
};

bool same(const LoraConfig& a, const LoraConfig& b, std::uint32_t num_layers) {
  const LoraModules of_a = modules_of(a, num_layers), of_b = modules_of(b, num_layers);
  const auto equal = [](const LoraModule& x, const LoraModule& y) { return x.rank == y.rank && x.scaling == y.scaling; };
  return a.use_dora == b.use_dora && std::equal(of_a.begin(), of_a.end(), of_b.begin(), [&](const auto& x, const auto& y) {
           return std::equal(x.begin(), x.end(), y.begin(), equal);
         });
}

}  // namespace

std::vector<std::string> new_adapter_options() {
  std::vector<std::string> names = {"init-lora-weights"};
  for (const Part& part : parts) names.emplace_back(part.option);
  return names;
}

void check_same_adapter(const LoraConfig& asked, const LoraConfig& adapter, std::uint32_t num_layers,
                        const std::function<bool(const std::string&)>& given) {
  LoraConfig all = adapter;
  for (const Part& part : parts) {
    if (given(part.option)) part.take(all, asked);
  }
  if (same(all, adapter, num_layers)) return;
  LoraConfig changed = adapter;
  for (const Part& part : parts) {
    if (!given(part.option)) continue;
    part.take(changed, asked);
    check<UsageError>(same(changed, adapter, num_layers), fmt::format("--{}", part.option),
                      "The {} of the adapter that --init-adapter names is {} and stays so; {} was given. Leave the option out, or begin a new adapter.",
                      part.what, part.text(adapter), part.text(asked));
  }
}

}  // namespace nibble::cli
