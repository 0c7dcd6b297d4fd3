#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// What Hugging Face calls the parts of a decoder.
namespace nibble {

// The seven linear maps of a layer, in the order in which data flows through them.
enum class Projection : std::uint8_t { q, k, v, o, gate, up, down };

inline constexpr std::array<Projection, 7> all_projections{
    Projection::q, Projection::k, Projection::v, Projection::o, Projection::gate, Projection::up, Projection::down};

// "q_proj"
std::string_view name_of(Projection projection);
std::optional<Projection> projection_named(std::string_view name);
// "self_attn" or "mlp"
std::string_view block_of(Projection projection);
// "model.layers.3.self_attn.q_proj"
std::string projection_module_name(std::uint32_t layer, Projection projection);
// The same with ".weight", as the checkpoint has it.
std::string projection_tensor_name(std::uint32_t layer, Projection projection);

// Of an expert: "model.layers.3.mlp.experts.5.up_proj".
std::string expert_module_name(std::uint32_t layer, std::uint32_t expert, Projection projection);
// Of every matrix that the projection has in a layer of so many experts, 0 where it has none: its own, or one for each expert.
std::vector<std::string> module_names(std::uint32_t experts, std::uint32_t layer, Projection projection);
// How many that are.
std::uint32_t matrices_of(std::uint32_t experts, Projection projection);
// The expert whose tensor that is; empty where it is none's.
std::optional<std::uint32_t> expert_in(std::string_view tensor);
// The router of a mixture of experts: "model.layers.3.mlp.gate.weight".
std::string router_tensor_name(std::uint32_t layer);

// "model.layers.3.self_attn.q_proj.bias"
std::string bias_tensor_name(std::uint32_t layer, Projection projection);

// The norms of a layer: before attention, before the MLP, and of each head's query and key.
enum class Norm : std::uint8_t { input, post_attention, q, k };

inline constexpr std::array<Norm, 4> all_norms{Norm::input, Norm::post_attention, Norm::q, Norm::k};

// "model.layers.3.input_layernorm.weight"
std::string norm_tensor_name(std::uint32_t layer, Norm norm);

inline constexpr std::string_view embedding_tensor_name = "model.embed_tokens.weight";
inline constexpr std::string_view final_norm_tensor_name = "model.norm.weight";
inline constexpr std::string_view head_tensor_name = "lm_head.weight";

}  // namespace nibble
