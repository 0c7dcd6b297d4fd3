#include "nibble/weights/gguf_names.h"

#include <fmt/format.h>

#include <array>
#include <utility>

#include "nibble/weights/names.h"

namespace nibble {
namespace {

using Pair = std::pair<std::string_view, std::string_view>;

constexpr std::array whole_names{
    Pair{embedding_tensor_name, "token_embd.weight"},
    Pair{final_norm_tensor_name, "output_norm.weight"},
    Pair{head_tensor_name, "output.weight"},
};

constexpr std::string_view layer_prefix = "model.layers.";

// Of a layer; ".weight" or ".bias" follows.
constexpr std::array layer_names{
    Pair{"input_layernorm", "attn_norm"},    Pair{"post_attention_layernorm", "ffn_norm"},
    Pair{"self_attn.q_proj", "attn_q"},      Pair{"self_attn.k_proj", "attn_k"},
    Pair{"self_attn.v_proj", "attn_v"},      Pair{"self_attn.o_proj", "attn_output"},
    Pair{"self_attn.q_norm", "attn_q_norm"}, Pair{"self_attn.k_norm", "attn_k_norm"},
    Pair{"mlp.gate_proj", "ffn_gate"},       Pair{"mlp.up_proj", "ffn_up"},
    Pair{"mlp.down_proj", "ffn_down"},       Pair{"mlp.gate", "ffn_gate_inp"},
};

}  // namespace

std::optional<std::string> gguf_tensor_name(std::string_view name) {
  for (const auto& [theirs, ours] : whole_names) {
    if (name == theirs) return std::string(ours);
  }
  if (!name.starts_with(layer_prefix)) return std::nullopt;
  const std::string_view rest = name.substr(layer_prefix.size());
  const auto dot = rest.find('.'), last = rest.rfind('.');
  if (dot == rest.npos || last <= dot) return std::nullopt;
  std::string part(rest.substr(dot + 1, last - dot - 1));
  const auto expert = expert_in(name);
  if (expert) part = "mlp." + part.substr(part.rfind('.') + 1);
  for (const auto& [theirs, ours] : layer_names) {
    if (part == theirs) return fmt::format("blk.{}.{}{}{}", rest.substr(0, dot), ours, expert ? "_exps" : "", rest.substr(last));
  }
  return std::nullopt;
}

}  // namespace nibble
