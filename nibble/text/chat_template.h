#pragma once

#include <ctime>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/io/file.h"
#include "nibble/text/aligned_text.h"
#include "nibble/text/jinja/template.h"
#include "nibble/text/tokenizer_config.h"

namespace nibble::text {

// Keeps the order of keys, which templates print.
using OrderedJson = nlohmann::ordered_json;

struct ChatRequest {
  OrderedJson messages = OrderedJson::array();
  OrderedJson tools = nullptr;  // a list, or null
  bool add_generation_prompt = false;
  OrderedJson variables = OrderedJson::object();  // more for the template, such as enable_thinking; these win
};

struct RenderedChat {
  std::string text;
  // What the template marks with {% generation %}, in order; empty where it marks nothing.
  std::vector<ByteSpan> generated;
};

// The chat templates of one model, run as transformers' apply_chat_template does. May be used by several threads.
class ChatTemplate {
 public:
  // Reads the folder's chat_template.jinja, or "chat_template" of tokenizer_config.json (one, or a list of named ones), and
  // additional_chat_templates/; or what a GGUF file's metadata hold. Nothing where the model has none. Throws DataError naming the file.
  static std::optional<ChatTemplate> load(const fs::path& model);
  // One template; the tokens of `config` become its variables bos_token, eos_token, pad_token and unk_token.
  static ChatTemplate parse(std::string_view source, const TokenizerConfig& config = {});

  // With tools the template named "tool_use" is taken, where there is one. Throws DataError with the template's line.
  RenderedChat render(const ChatRequest& request) const;

  // What strftime_now sees: the time at which this was made, so that every row of a run sees the same.
  void set_time(std::time_t now) { now_ = now; }

 private:
  void add_folder(const fs::path& folder);
  void add_config(const Json& config, const std::string& origin);
  void add(const std::string& name, std::string_view source, const std::string& origin);

  std::map<std::string, jinja::Template> templates_;
  std::vector<std::pair<std::string, std::string>> tokens_;
  std::time_t now_ = 0;
};

}  // namespace nibble::text
