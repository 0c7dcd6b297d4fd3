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

struct MergeOptions {
  fs::path model, output;
  std::vector<MergeAdapter> adapters = {};  // none: the model alone is written
  std::optional<DType> dtype;  // f32, f16 or bf16; empty keeps that of each tensor
  MergeBase onto = MergeBase::original;
  std::uint64_t max_shard_bytes = 5'000'000'000;
  bool overwrite = false;                // replace a folder that is not empty
  std::function<void(double)> progress;  // how much is written, from 0 to 1
};

struct MergeResult {
  SavedShards saved;
  MergeNorms norms;
};

// Writes W + the sum of weight * scaling * B A over the adapters as a Hugging Face folder that stands alone: weights, config.json, generation_config.json,
// tokenizer and chat template. An adapter's trained head makes it untied; it must be the only adapter, with the weight 1. The folder appears whole or not at all, and
// only some rows of one tensor are in memory at a time. UsageError where the output is the model or adapter or contains
// them, or is not empty; DataError where files do not fit together, the disk has no room, or a value leaves the range
// of dtype.
MergeResult merge(const MergeOptions& options);

}  // namespace nibble
