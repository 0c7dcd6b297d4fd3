#pragma once

#include "nibble/io/json.h"

#include <filesystem>

namespace nibble {

// The lines of metrics.jsonl up to a step as "log_history" of transformers' Trainer: the same numbers under its and TRL's names,
// each with its epoch, so that scripts that draw its runs draw these.
Json log_history(const std::filesystem::path& metrics, std::uint64_t last_step);

}  // namespace nibble
