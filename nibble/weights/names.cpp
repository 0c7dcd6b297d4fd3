#include "nibble/weights/names.h"

#include <fmt/format.h>

#include <charconv>

namespace nibble {
namespace {

constexpr std::array<std::string_view, 7> projection_names{"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                           "gate_proj", "up_proj", "down_proj"};
constexpr std::array<std::string_view, 4> norm_names{"input_layernorm", "post_attention_layernorm", "self_attn.q_norm",
                                                     "self_attn.k_norm"};

}  // namespace

std::string_view name_of(Projection projection) { return projection_names[static_cast<std::size_t>(projection)]; }

std::optional<Projection> projection_named(std::string_view name) {
  for (const Projection projection : all_projections) {
    if (name_of(projection) == name) return projection;
  }
  return std::nullopt;
}

std::string_view block_of(Projection projection) { return projection < Projection::gate ? "self_attn" : "mlp"; }

std::string projection_module_name(std::uint32_t layer, Projection projection) {
  return fmt::format("model.layers.{}.{}.{}", layer, block_of(projection), name_of(projection));
}

std::string projection_tensor_name(std::uint32_t layer, Projection projection) {
  return projection_module_name(layer, projection) + ".weight";
}

std::string expert_module_name(std::uint32_t layer, std::uint32_t expert, Projection projection) {
  return fmt::format("model.layers.{}.{}.experts.{}.{}", layer, block_of(projection), expert, name_of(projection));
}

std::vector<std::string> module_names(std::uint32_t experts, std::uint32_t layer, Projection projection) {
  if (experts == 0 || projection < Projection::gate) return {projection_module_name(layer, projection)};
  std::vector<std::string> names;
  for (std::uint32_t expert = 0; expert < experts; ++expert) names.push_back(expert_module_name(layer, expert, projection));
  return names;
}

std::uint32_t matrices_of(std::uint32_t experts, Projection projection) {
  return experts > 0 && projection >= Projection::gate ? experts : 1;
}

std::optional<std::uint32_t> expert_in(std::string_view tensor) {
  constexpr std::string_view before = ".mlp.experts.";
  const auto at = tensor.find(before);
  if (at == tensor.npos) return std::nullopt;
  const std::string_view rest = tensor.substr(at + before.size());
  std::uint32_t expert = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), expert);
  if (error != std::errc() || end == rest.data() + rest.size() || *end != '.') return std::nullopt;
  return expert;
}

std::string router_tensor_name(std::uint32_t layer) { return fmt::format("model.layers.{}.mlp.gate.weight", layer); }

std::string bias_tensor_name(std::uint32_t layer, Projection projection) {
  return projection_module_name(layer, projection) + ".bias";
}

std::string norm_tensor_name(std::uint32_t layer, Norm norm) {
  return fmt::format("model.layers.{}.{}.weight", layer, norm_names[static_cast<std::size_t>(norm)]);
}

}  // namespace nibble
