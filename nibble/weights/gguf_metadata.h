#pragma once

#include "nibble/io/gguf.h"
#include "nibble/weights/config.h"

namespace nibble {

// "qwen3", "qwen3moe", "qwen2", "smollm3" or "llama", of which Mistral's models are too.
std::string gguf_architecture(const ModelConfig& config);

// general.* and the architecture's keys, as llama.cpp's converter writes them for such a model. DataError where the
// config has something that llama.cpp would not read.
GgufMetadata gguf_model_metadata(const ModelConfig& config, const fs::path& model, GgmlType matrices);

// Refuses, in the name of `where`, a model that llama.cpp computes otherwise throughout (it does not rotate every fourth layer of
// SmolLM3, whatever the config says, and applies no divisors of Llama 3 to it; it always divides the weights of a token's experts by their
// sum). DataError.
void check_for_llama_cpp(const ModelConfig& config, const std::string& where);

// What llama.cpp computes otherwise than this model, in full sentences: it applies no sliding window to the
// architecture llama.
std::vector<std::string> llama_cpp_notes(const ModelConfig& config);

}  // namespace nibble
