#pragma once

#include <CLI/CLI.hpp>

#include <algorithm>
#include <string>
#include <vector>

#include "nibble/weights/peft.h"

namespace nibble::cli {

// What makes up a new adapter, for verbs that begin one.
struct LoraFlags {
  std::vector<std::string> target_modules = {"auto"};

  // Rank, alpha, the kind of scaling and the targets; they fill `lora`.
  void add_to(CLI::App& group, LoraConfig& lora);
  // Whether the targets are left to the model's kind.
  bool usual() const { return std::find(target_modules.begin(), target_modules.end(), "auto") != target_modules.end(); }
  // After parsing. UsageError names what is no projection.
  void finish(LoraConfig& lora) const;
};

}  // namespace nibble::cli
