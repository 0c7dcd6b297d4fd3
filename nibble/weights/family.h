#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace nibble {

// What sets a family of decoders apart from the others; "model_type" of config.json names it. All else, the order of norms,
// attention and SwiGLU and the names of tensors, is theirs in common.
struct Family {
  std::string_view model_type;
  std::string_view architecture;  // of transformers
  bool qk_norm;                   // RMSNorm of each head's queries and keys, before they are rotated
  bool qkv_bias;                  // of the projections of queries, keys and values
  bool sliding_window;            // that key of config.json counts
  bool interleaved_in_gguf;       // files of its architecture have rows of queries and keys in llama's order (gguf_names.h)

  // What the family's class of transformers takes for keys that config.json leaves out.
  std::uint32_t head_dim;             // 0: hidden_size / num_attention_heads
  std::uint32_t num_key_value_heads;  // 0: num_attention_heads
  std::uint32_t max_position_embeddings;
  std::uint32_t window;
  std::uint32_t nope_interval = 0;  // of so many layers the last does not rotate queries and keys (NoPE), where config.json does not say; 0: all do
  float rope_theta = 10000;
  bool tied = false;     // tie_word_embeddings
  bool experts = false;  // the MLP of each layer is a mixture of experts
};

inline constexpr std::array families{
    Family{"qwen3", "Qwen3ForCausalLM", true, false, false, false, 128, 0, 32768, 0},
    Family{"qwen2", "Qwen2ForCausalLM", false, true, false, false, 0, 32, 32768, 0},
    Family{"llama", "LlamaForCausalLM", false, false, false, true, 0, 0, 2048, 0},
    Family{"mistral", "MistralForCausalLM", false, false, true, true, 0, 8, 131072, 4096},
    Family{"smollm3", "SmolLM3ForCausalLM", false, false, false, true, 0, 4, 32768, 0, 4, 2e6f, true},
    Family{"qwen3_moe", "Qwen3MoeForCausalLM", true, false, false, false, 0, 4, 32768, 0, 0, 10000, false, true},
};

// Null where there is none of that name.
constexpr const Family* family_named(std::string_view model_type) {
  for (const Family& family : families) {
    if (family.model_type == model_type) return &family;
  }
  return nullptr;
}

}  // namespace nibble
