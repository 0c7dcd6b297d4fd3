#include <algorithm>
#include <cmath>

#include "nibble/base/error.h"
#include "nibble/text/regex.h"
#include "nibble/weights/peft.h"

// Which modules an adapter has, and with which rank and scaling.
namespace nibble {
namespace {

bool is_plain(std::string_view key) {
  return std::all_of(key.begin(), key.end(), [](unsigned char c) { return c < 0x80 && (std::isalnum(c) || c == '_' || c == '.'); });
}

// A key as PEFT matches it (get_pattern_key): re.match(rf"(.*\.)?({key})$", name).
class Key {
 public:
  explicit Key(const std::string& key) : key_(key) {
    // Adapters whose ranks were searched for have a plain key for each module, and many of them.
    if (!is_plain(key)) regex_.emplace(R"(^(?:.*\.)?(?:)" + key + ")$", "rank_pattern or alpha_pattern");
  }

  bool matches(std::string_view name) const {
    if (!regex_) return matches_plain(name);
    text::Matcher matcher(*regex_);
    matcher.reset(name);
    return matcher.next().has_value();
  }

 private:
  // A dot of the key is any character.
  bool matches_plain(std::string_view name) const {
    if (key_.size() > name.size()) return false;
    const std::size_t first = name.size() - key_.size();
    if (first > 0 && name[first - 1] != '.') return false;
    return std::equal(key_.begin(), key_.end(), name.begin() + static_cast<std::ptrdiff_t>(first),
                      [](char key, char c) { return key == '.' || key == c; });
  }

  std::string key_;
  std::optional<text::Regex> regex_;
};

// re.fullmatch of Python; an empty one matches nothing.
class Whole {
 public:
  Whole(const std::string& pattern, std::string_view where) {
    if (!pattern.empty()) regex_.emplace("\\A(?:" + pattern + ")\\z", std::string(where));
  }
  bool matches(std::string_view name) const {
    if (!regex_) return false;
    text::Matcher matcher(*regex_);
    matcher.reset(name);
    return matcher.next().has_value();
  }

 private:
  std::optional<text::Regex> regex_;
};

// Which modules are adapted, as PEFT finds them (check_target_module_exists).
class Targets {
 public:
  explicit Targets(const LoraConfig& config)
      : config_(config), wanted_(config.target_pattern, "target_modules"), excluded_(config.exclude_pattern, "exclude_modules") {
    for (const std::string_view other : {"lm_head", "model.embed_tokens"}) {
      check<DataError>(!wanted_.matches(other) || excludes(other), "target_modules",
                       "The pattern \"{}\" matches {} too, which cannot be adapted; it may match projections of layers alone.", config.target_pattern,
                       other);
    }
  }

  bool has(std::uint32_t layer, std::string_view name) const {
    const auto& layers = config_.layers_to_transform;
    if (!layers.empty() && !std::binary_search(layers.begin(), layers.end(), layer)) return false;
    return (config_.target_pattern.empty() || wanted_.matches(name)) && !excludes(name);
  }

 private:
  bool excludes(std::string_view name) const {
    const auto& names = config_.exclude_modules;
    return excluded_.matches(name) || std::any_of(names.begin(), names.end(), [&](const std::string& end) {
             return name == end || (name.ends_with(end) && name.size() > end.size() && name[name.size() - end.size() - 1] == '.');
           });
  }

  const LoraConfig& config_;
  Whole wanted_, excluded_;
};

template <typename Value>
class Patterns {
 public:
  explicit Patterns(const LoraConfig::Pattern<Value>& values) {
    for (const auto& [key, value] : values) patterns_.emplace_back(Key(key), value);
  }

  Value at(std::string_view name, Value otherwise) const {
    const auto found = std::find_if(patterns_.begin(), patterns_.end(), [&](const auto& each) { return each.first.matches(name); });
    return found == patterns_.end() ? otherwise : found->second;
  }

 private:
  std::vector<std::pair<Key, Value>> patterns_;
};

double scaling_of(double alpha, double rank, bool use_rslora) { return alpha / (use_rslora ? std::sqrt(rank) : rank); }

}  // namespace

bool LoraConfig::targets(Projection projection) const {
  return std::find(target_modules.begin(), target_modules.end(), projection) != target_modules.end();
}

double LoraConfig::scaling() const { return scaling_of(lora_alpha, rank, use_rslora); }

LoraModules modules_of(const LoraConfig& config, std::uint32_t num_layers) {
  const auto& layers = config.layers_to_transform;
  check<DataError>(layers.empty() || layers.back() < num_layers, "layers_to_transform",
                   "Layer {} is named, but the model has {}, numbered from 0.", layers.empty() ? 0 : layers.back(), num_layers);
  const Targets targets(config);
  bool any = false;
  const Patterns ranks(config.rank_pattern);
  const Patterns alphas(config.alpha_pattern);
  LoraModules modules(num_layers);
  for (std::uint32_t layer = 0; layer < num_layers; ++layer) {
    for (const Projection projection : config.target_modules) {
      const std::string name = projection_module_name(layer, projection);
      if (!targets.has(layer, name)) continue;
      any = true;
      const std::uint32_t rank = ranks.at(name, config.rank);
      modules[layer][static_cast<std::size_t>(projection)] = {.rank = rank,
                                                              .scaling = scaling_of(alphas.at(name, config.lora_alpha), rank, config.use_rslora)};
    }
  }
  check<DataError>(any || num_layers == 0 || config.target_modules.empty(), "target_modules",
                   "No projection of the {} layers is left by target_modules and exclude_modules; names are as {}.", num_layers,
                   projection_module_name(0, Projection::q));
  return modules;
}

void check_patterns(const LoraConfig& config, std::uint32_t num_layers) {
  const Targets targets(config);
  const auto check_keys = [&](const auto& pattern, const char* option) {
    for (const auto& entry : pattern) {
      const Key key(entry.first);
      bool any = false;
      for (std::uint32_t layer = 0; layer < num_layers && !any; ++layer) {
        any = std::any_of(config.target_modules.begin(), config.target_modules.end(), [&](Projection projection) {
          const std::string name = projection_module_name(layer, projection);
          return targets.has(layer, name) && key.matches(name);
        });
      }
      check<UsageError>(any, option, "\"{}\" is the end of no adapted module's name; names are as {}.", entry.first,
                        projection_module_name(0, Projection::q));
    }
  };
  check_keys(config.rank_pattern, "--rank-pattern");
  check_keys(config.alpha_pattern, "--alpha-pattern");
}

std::uint32_t largest_rank(const LoraModules& modules) {
  std::uint32_t largest = 0;
  for (const auto& layer : modules) {
    for (const LoraModule& module : layer) largest = std::max(largest, module.rank);
  }
  return largest;
}

std::vector<Projection> usual_targets(const ModelConfig& model) {
  const auto projections = single_projections(model);
  return {projections.begin(), projections.end()};
}

bool adapts_experts(const ModelConfig& model, const LoraConfig& config) {
  return model.has_experts() && std::any_of(config.target_modules.begin(), config.target_modules.end(), [](Projection p) { return p >= Projection::gate; });
}

std::string ranks_text(const LoraConfig& config) {
  std::uint32_t least = config.rank, most = config.rank;
  for (const auto& [key, rank] : config.rank_pattern) least = std::min(least, rank), most = std::max(most, rank);
  return least == most ? fmt::format("{}", least) : fmt::format("{} to {}", least, most);
}

}  // namespace nibble
