#pragma once

#include "nibble/model/sampler.h"
#include "nibble/weights/config.h"

#include <CLI/CLI.hpp>

#include <optional>
#include <string>

namespace nibble::cli {

// How verbs that generate choose tokens.
struct SamplingFlags {
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<std::uint32_t> top_k;
  std::uint64_t seed = 0;

  // `defaults` says what holds without the flags.
  void add_to(CLI::App& verb, const std::string& defaults);
  // The flags before what the model's files say before nibble's defaults. Throws UsageError for a value out of range.
  SamplingOptions options(const GenerationDefaults& made) const;
};

}  // namespace nibble::cli
