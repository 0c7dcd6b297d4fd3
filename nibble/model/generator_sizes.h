#pragma once

#include "nibble/model/head.h"
#include "nibble/model/layers.h"

#include <algorithm>
#include <cstdint>

// How large what a Generator keeps is, which its constructor and Generator::bytes share; nothing for others.
namespace nibble {

struct GeneratorOptions;

// Most tokens of a generator's passes.
struct PassSizes {
  std::uint32_t piece;        // of prompts
  std::uint32_t few;          // of one text by vectors
  std::uint32_t texts;        // last tokens of several texts, of each one
  std::uint32_t joined;       // texts that are computed from their beginning in one pass
  std::uint32_t on_matrices;  // texts from which on last tokens go by matrix units; 0: never

  std::uint32_t most() const { return std::max({piece, few, texts}); }
};
PassSizes pass_sizes(const gpu::Device& device, const ModelConfig& config, const GeneratorOptions& options, std::uint32_t rank, bool use_dora);

// Of the layers that compute pieces.
LayersOptions pieces_options(ProductPath path, const PassSizes& sizes, std::uint32_t rank, bool use_dora);
HeadOptions generator_head_options(ProductPath path, const PassSizes& sizes);

// Tokens of a text, and rows of its keys.
std::uint32_t text_capacity(const ModelConfig& config, const GeneratorOptions& options);
std::uint32_t key_capacity(const ModelConfig& config, const GeneratorOptions& options);
// Of keys and values: f16 where layers compute in f16 and meet them in one binding, but on software adapters, which have little
// to gain by it.
DType cache_dtype(const gpu::Device& device, const ModelConfig& config, const GeneratorOptions& options, std::uint32_t rank, bool use_dora);
// Of one layer's, of all texts.
std::uint64_t keys_bytes(const ModelConfig& config, const GeneratorOptions& options, DType dtype);

// What a pass uploads at once, each part where a binding may begin: ids, positions, begins and ends of keys in the caches and
// within the stream, and the rows whose logits are wanted.
constexpr std::uint32_t stream_parts = 7;
constexpr std::uint32_t part_of_stream(std::uint32_t tokens) { return (tokens + 63) / 64 * 64; }

// Whether layers of a token of one text should be done in one dispatch; on a processor nothing is gained by it.
bool wants_step(const gpu::Device& device, const GeneratorOptions& options);

}  // namespace nibble
