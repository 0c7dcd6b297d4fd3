#pragma once

#include "nibble/cli/text_model.h"

#include <optional>
#include <string>
#include <vector>

namespace nibble::cli {

struct PromptRow {
  std::uint64_t line = 0;  // in the file, from 1
  Tokens tokens;
};

struct PromptOptions {
  std::optional<std::string> system;  // in place of a chat's own
  PromptThinking thinking;
  bool raw = false;                   // a "prompt" that is a text is continued as it is
};

// The prompts of a JSON Lines file: {"prompt": a text or a list of messages}, or rows as training takes them, without the
// assistant's last turns or the completion. Empty lines are left out. Throws DataError that names file and line.
std::vector<PromptRow> read_prompt_rows(const std::string& path, const TextFiles& files, const PromptOptions& options);

}  // namespace nibble::cli
