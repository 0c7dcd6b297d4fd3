#pragma once

#include <functional>
#include <optional>

#include "nibble/base/dtype.h"
#include "nibble/io/shards.h"
#include "nibble/weights/lora_start.h"

namespace nibble {

struct QuantizeOptions {
  fs::path model, output;
  bool double_quant = false;           // the scales in 8 bits too
  DType compute_dtype = DType::bf16;   // what config.json tells bitsandbytes to compute in: bf16, f16 or f32
  std::uint64_t max_shard_bytes = 5'000'000'000;
  std::optional<LoraStart> start;        // the base and an adapter for it, which goes to a folder in `output`
  bool overwrite = false;                // replace a folder that is not empty
  std::function<void(double)> progress;  // how much is done, from 0 to 1
};

struct QuantizeResult {
  SavedShards saved;
  std::uint64_t matrices = 0;      // that were quantised
  std::uint64_t source_bytes = 0;  // of the model's weights
};

// Writes a model's projections in NF4 and everything else as it is: the folder that transformers saves with bitsandbytes
// (docs/formats.md), byte for byte. It appears whole or not at all; of a tensor only its 4 bits are whole in memory, of a few
// tensors at a time; with a start some copies of one in f32 too. UsageError where the output is the model, contains it or is not empty; DataError where the model is quantised
// already, does not fit its config.json, holds a value that is not finite, or the disk has no room.
QuantizeResult quantize_model(const QuantizeOptions& options);

// The same into a folder that is there and empty, without the files beside weights and config.json.
QuantizeResult write_quantized(const QuantizeOptions& options, const fs::path& folder);

}  // namespace nibble
