#pragma once

#include "nibble/io/checkpoint.h"
#include "nibble/io/json.h"
#include "nibble/train/run_data.h"

namespace nibble {

// What the bytes of a run's result depend on, by name of option or key of config.json: a resumed run must agree in all of it.
Json fingerprint(const TrainOptions& options, const RunData& data, const Checkpoint& base, const ModelConfig& config,
                 std::uint64_t total_steps);

// FNV-1a of 64 bits over names, types, shapes and the first 4 KiB of every tensor: tells models apart without reading all.
std::string base_hash(const Checkpoint& base);

}  // namespace nibble
