#pragma once

#include <optional>
#include <string>

#include "nibble/text/chat_template.h"

namespace nibble::cli {

// The model's chat template in Ollama's own form, with what ends an answer.
struct OllamaTemplate {
  std::string text;  // of Go's text/template
  std::string stop;
};

// That whose prompts, of chats with and without system message and of several turns, are those of the model's template;
// empty where there is none. Tools and thinking are not looked at.
std::optional<OllamaTemplate> ollama_template(const text::ChatTemplate& chat_template);

// FROM, ADAPTER and, where there is one, TEMPLATE and the parameter stop.
std::string modelfile(const std::string& base, const std::string& adapter, const std::optional<OllamaTemplate>& chat);

}  // namespace nibble::cli
