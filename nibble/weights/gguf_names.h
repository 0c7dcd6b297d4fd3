#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

// What GGUF files call the parts of a decoder (gguf-py, constants.py), and in which order they have the rows of heads.
namespace nibble {

// "blk.3.attn_q.weight" of "model.layers.3.self_attn.q_proj.weight"; empty where it has no name there. The matrices of a layer's experts
// are one tensor (experts, out, in): "blk.3.ffn_up_exps.weight" of "model.layers.3.mlp.experts.5.up_proj.weight".
std::optional<std::string> gguf_tensor_name(std::string_view name);

// Files of llama's architecture and its kin (Family::interleaved_in_gguf) have the rows of each head of queries and keys in another order: the two halves
// that RoPE rotates against each other are interleaved. The file's row that holds `row` of a matrix with heads of
// `head_dim` rows.
constexpr std::uint64_t interleaved_row(std::uint64_t row, std::uint64_t head_dim) {
  const std::uint64_t half = head_dim / 2, within = row % head_dim;
  return row - within + within % half * 2 + within / half;
}

}  // namespace nibble
