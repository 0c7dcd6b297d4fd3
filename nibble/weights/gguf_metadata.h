#pragma once

#include "nibble/io/gguf.h"
#include "nibble/weights/config.h"

namespace nibble {

// "qwen3", "qwen2" or "llama", of which Mistral's models are too.
std::string gguf_architecture(const ModelConfig& config);

// general.* and the architecture's keys, as llama.cpp's converter writes them for such a model. DataError where the
// config has something that llama.cpp would not read.
GgufMetadata gguf_model_metadata(const ModelConfig& config, const fs::path& model, GgmlType matrices);

// What llama.cpp computes otherwise than this model, in full sentences: it applies no sliding window to the
// architecture llama.
std::vector<std::string> llama_cpp_notes(const ModelConfig& config);

}  // namespace nibble
