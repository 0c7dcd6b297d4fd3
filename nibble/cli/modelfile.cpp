#include "nibble/cli/modelfile.h"

#include <fmt/format.h>

#include <array>

#include "nibble/base/error.h"

namespace nibble::cli {
namespace {

using text::OrderedJson;

// A chat is `begin`, then for each message `before` ROLE `between` CONTENT `after`, then `before` assistant `between`.
struct ChatForm {
  std::string_view before, between, after;
};

constexpr ChatForm chatml{"<|im_start|>", "\n", "<|im_end|>\n"};
constexpr ChatForm llama3{"<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"};
// Ollama's runner puts the begin token there itself.
constexpr std::string_view llama3_begin = "<|begin_of_text|>";

std::string prompt_of(const ChatForm& form, const OrderedJson& messages) {
  std::string prompt;
  for (const auto& message : messages) {
    prompt += fmt::format("{}{}{}{}{}", form.before, message["role"].get<std::string>(), form.between,
                          message["content"].get<std::string>(), form.after);
  }
  return fmt::format("{}{}assistant{}", prompt, form.before, form.between);
}

std::array<OrderedJson, 3> probes() {
  const auto say = [](const char* role, const char* content) {
    return OrderedJson{{"role", role}, {"content", content}};
  };
  const OrderedJson system = say("system", "Be brief."), first = say("user", "One?"), answer = say("assistant", "Two."),
                    second = say("user", "Three?");
  return {OrderedJson::array({first}), OrderedJson::array({system, first}),
          OrderedJson::array({system, first, answer, second})};
}

bool writes(const text::ChatTemplate& chat_template, const ChatForm& form) {
  for (const OrderedJson& messages : probes()) {
    std::string prompt;
    try {
      prompt = chat_template.render({.messages = messages, .tools = {}, .add_generation_prompt = true}).text;
    } catch (const DataError&) {
      return false;  // a template that takes no system message
    }
    if (prompt.starts_with(llama3_begin)) prompt.erase(0, llama3_begin.size());
    if (prompt != prompt_of(form, messages)) return false;
  }
  return true;
}

OllamaTemplate in_go(const ChatForm& form) {
  const std::string_view stop = form.after.substr(0, form.after.find('\n'));
  return {
      .text = fmt::format("{{{{- range .Messages }}}}{}{{{{ .Role }}}}{}{{{{ .Content }}}}{}{{{{ end }}}}{}assistant{}",
                          form.before, form.between, form.after, form.before, form.between),
      .stop = std::string(stop)};
}

}  // namespace

std::optional<OllamaTemplate> ollama_template(const text::ChatTemplate& chat_template) {
  for (const ChatForm& form : {chatml, llama3}) {
    if (writes(chat_template, form)) return in_go(form);
  }
  return std::nullopt;
}

std::string modelfile(const std::string& base, const std::string& adapter, const std::optional<OllamaTemplate>& chat) {
  std::string text = fmt::format("FROM {}\nADAPTER {}\n", base, adapter);
  if (chat) text += fmt::format("TEMPLATE \"\"\"{}\"\"\"\nPARAMETER stop \"{}\"\n", chat->text, chat->stop);
  return text;
}

}  // namespace nibble::cli
