#pragma once

#include "nibble/base/ggml_type.h"
#include "nibble/weights/peft.h"

// Adapters for the programs that read them: docs/formats.md has the table of what each accepts.
namespace nibble {

enum class Consumer : std::uint8_t { peft, vllm, llama_cpp, ollama, mlx };

struct AdapterExport {
  fs::path model, adapter, output;  // a folder; for llama.cpp a file
  fs::path start;  // the adapter that was made with the base (lora_start.h); what is written is then for the original weights, `model`
  Consumer consumer = Consumer::peft;
  GgmlType gguf_type = GgmlType::f32;  // or f16
  bool overwrite = false;
};

// The adapter as its consumer is to get it, and what a user has to know. UsageError where the output is there already
// or holds what is read; DataError where the consumer would refuse or misread the adapter.
struct ExportedAdapter {
  LoraAdapter adapter;
  ModelConfig config;
  std::vector<std::string> notes;
};
ExportedAdapter check_export(const AdapterExport& options);

// A GGUF file as llama.cpp reads it: alpha stands for the whole scaling, where it differs by module the difference is in B, and B of
// llama's queries and keys has its rows in the order of GGUF files. The matrices of experts are one tensor, (experts, rank, in) and
// (experts, out, rank).
void save_gguf_adapter(const fs::path& path, const ExportedAdapter& exported, GgmlType type);

}  // namespace nibble
