#pragma once

#include "nibble/io/checkpoint.h"
#include "nibble/io/gguf.h"
#include "nibble/weights/config.h"

// A GGUF file as a model: in place of the folder that Hugging Face lays out.
namespace nibble {

// What config.json would say, from metadata and tensors of a file of the architecture qwen3, qwen3moe, qwen2, smollm3 or llama. DataError
// names file and key where something is missing or not supported.
Json config_of_gguf(const GgufFile& file);

// The tensors of a model folder, those of types that are not computed with decoded (decoded_tensor.h) and experts one by one
// (fused_experts.h), or of a GGUF file by their names of Hugging Face: blocks are decoded to f32 as they are read, and queries and keys of llama have their rows in Hugging Face's order. DataError names file and tensor
// where one is of a type that is not decoded or belongs to no such model; missing ones and shapes are for
// check_checkpoint.
Checkpoint open_checkpoint(const fs::path& model, const ModelConfig& config);

// The stretched frequencies of Llama 3 as GGUF files store them (rope_freqs.weight): what each frequency is divided by.
std::vector<float> llama3_divisors(const RopeConfig& rope, std::uint32_t head_dim);

}  // namespace nibble
