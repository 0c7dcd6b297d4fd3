#include "nibble/text/chat_template.h"

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/io/gguf_tokenizer.h"

namespace nibble::text {
namespace {

constexpr std::string_view where = "chat_template";
constexpr std::uint64_t max_template_bytes = std::uint64_t{4} << 20;

std::vector<std::pair<std::string, std::string>> tokens_of(const TokenizerConfig& config) {
  std::vector<std::pair<std::string, std::string>> tokens;
  const auto add = [&](const char* name, const std::optional<std::string>& token) {
    if (token) tokens.emplace_back(name, *token);
  };
  add("bos_token", config.bos_token);
  add("eos_token", config.eos_token);
  add("pad_token", config.pad_token);
  add("unk_token", config.unk_token);
  return tokens;
}

// Name and text of each template in tokenizer_config.json.
std::vector<std::pair<std::string, std::string>> named_templates(const Json& config, const std::string& origin) {
  std::vector<std::pair<std::string, std::string>> result;
  const auto found = config.find("chat_template");
  if (found == config.end() || found->is_null()) return result;
  if (found->is_string()) return {{"default", found->get<std::string>()}};
  check<DataError>(found->is_array(), where, "{}: \"chat_template\" is a string or a list of named ones.", origin);
  for (const Json& entry : *found) {
    const bool whole = entry.is_object() && entry.contains("name") && entry["name"].is_string() &&
                       entry.contains("template") && entry["template"].is_string();
    check<DataError>(whole, where, "{}: Each of \"chat_template\" needs a \"name\" and a \"template\".", origin);
    result.emplace_back(entry["name"].get<std::string>(), entry["template"].get<std::string>());
  }
  return result;
}

std::vector<fs::path> additional_files(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::directory_iterator it(folder / "additional_chat_templates", error), end; !error && it != end;
       it.increment(error)) {
    if (it->path().extension() == ".jinja") files.push_back(it->path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

bool is_file(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

}  // namespace

std::optional<ChatTemplate> ChatTemplate::load(const fs::path& model) {
  ChatTemplate result;
  result.now_ = std::time(nullptr);
  if (is_gguf(model)) {
    result.add_config(hf_tokenizer_config(GgufFile(model)), model.string());
  } else {
    result.add_folder(model);
  }
  if (result.templates_.empty()) return std::nullopt;
  check<DataError>(result.templates_.contains("default"), where,
                   "{}: The model has no chat template named \"default\".", model.string());
  return result;
}

void ChatTemplate::add_folder(const fs::path& folder) {
  const fs::path config_path = folder / "tokenizer_config.json";
  if (is_file(config_path)) add_config(read_json_file(config_path), config_path.string());
  const fs::path own = folder / "chat_template.jinja";
  if (is_file(own)) add("default", read_file(own, max_template_bytes), own.string());
  for (const fs::path& path : additional_files(folder)) {
    add(path.stem().string(), read_file(path, max_template_bytes), path.string());
  }
}

void ChatTemplate::add_config(const Json& config, const std::string& origin) {
  check<DataError>(config.is_object(), where, "{}: The file holds an object.", origin);
  tokens_ = tokens_of(tokenizer_config_of(config, origin));
  for (const auto& [name, source] : named_templates(config, origin)) add(name, source, origin);
}

ChatTemplate ChatTemplate::parse(std::string_view source, const TokenizerConfig& config) {
  ChatTemplate result;
  result.now_ = std::time(nullptr);
  result.tokens_ = tokens_of(config);
  result.templates_.emplace("default", jinja::Template::parse(source));
  return result;
}

void ChatTemplate::add(const std::string& name, std::string_view source, const std::string& origin) {
  try {
    templates_.insert_or_assign(name, jinja::Template::parse(source));
  } catch (const DataError& error) {
    throw DataError(fmt::format("{} (template \"{}\" of {})", error.what(), name, origin));
  }
}

RenderedChat ChatTemplate::render(const ChatRequest& request) const {
  const bool has_tools = request.tools.is_array() && !request.tools.empty();
  const auto for_tools = templates_.find("tool_use");
  const jinja::Template& chosen =
      has_tools && for_tools != templates_.end() ? for_tools->second : templates_.at("default");
  jinja::Dict variables;
  try {
    for (const auto& [name, token] : tokens_) variables.set(name, token);
    variables.set("messages", jinja::from_json(request.messages));
    variables.set("tools", has_tools ? jinja::from_json(request.tools) : jinja::Value::none());
    variables.set("documents", jinja::Value::none());
    variables.set("add_generation_prompt", request.add_generation_prompt);
    for (const auto& [name, value] : request.variables.items()) variables.set(name, jinja::from_json(value));
  } catch (const jinja::TemplateError& error) {
    fail<DataError>(where, "{}", error.what());
  }
  jinja::Rendered rendered = chosen.render(variables, now_);
  RenderedChat result{.text = std::move(rendered.text), .generated = {}};
  if (rendered.lost_generation) return result;
  for (const auto& [begin, end] : rendered.generated) {
    result.generated.push_back({static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end)});
  }
  return result;
}

}  // namespace nibble::text
