#pragma once

#include <functional>
#include <optional>

#include "nibble/base/dtype.h"
#include "nibble/io/shards.h"
#include "nibble/weights/merge_matrix.h"

namespace nibble {

// What an adapter is added to.
enum class MergeBase : std::uint8_t {
  original,  // the weights as the model has them
  nf4,       // what they are in NF4: the weights that training saw
};

struct MergeAdapter {
  fs::path folder;
  double weight = 1;  // of its update among the others
};

// How a GGUF file has its matrices; norms and biases are f32.
enum class GgufModelType : std::uint8_t { stored, f32, f16, bf16, q8_0, q4_0 };  // stored: that of the model, or f16 where it is in blocks

struct MergeOptions {
  fs::path model, output;
  std::vector<MergeAdapter> adapters = {};  // none: the model alone is written
  std::optional<DType> dtype;  // f32, f16 or bf16; empty keeps that of each tensor
  MergeBase onto = MergeBase::original;
  std::optional<GgufModelType> gguf;  // one GGUF file instead of a folder; `dtype` does not count then
  std::uint64_t max_shard_bytes = 5'000'000'000;
  bool overwrite = false;                // replace a folder that is not empty
  std::function<void(double)> progress;  // how much is written, from 0 to 1
};

struct MergeResult {
  SavedShards saved;
  MergeNorms norms;
  std::vector<std::string> notes;  // what a user has to know, in full sentences
};

// Writes W + the sum of weight * scaling * B A over the adapters as a Hugging Face folder that stands alone: weights, config.json,
// generation_config.json, tokenizer and chat template; or as a GGUF file with all of that in its metadata, as llama.cpp's converter
// writes it. An adapter's trained head makes it untied; it must be the only adapter, with the weight 1. What is written appears whole or
// not at all, and only some rows of one tensor are in memory at a time (in a GGUF file of llama whole queries and keys in their own
// type). UsageError where the output is the model or adapter or contains
// them, or is not empty; DataError where files do not fit together, the disk has no room, or a value leaves the range
// of dtype.
MergeResult merge(const MergeOptions& options);

}  // namespace nibble
