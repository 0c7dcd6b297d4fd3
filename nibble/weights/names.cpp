#include "nibble/weights/names.h"

#include <fmt/format.h>

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

std::string bias_tensor_name(std::uint32_t layer, Projection projection) {
  return projection_module_name(layer, projection) + ".bias";
}

std::string norm_tensor_name(std::uint32_t layer, Norm norm) {
  return fmt::format("model.layers.{}.{}.weight", layer, norm_names[static_cast<std::size_t>(norm)]);
}

}  // namespace nibble
