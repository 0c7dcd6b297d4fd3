#include <algorithm>
#include <array>

#include "nibble/base/error.h"
#include "nibble/io/gguf_pre.h"
#include "nibble/io/gguf_tokenizer.h"

namespace nibble {
namespace {

// Tokens by id, and what each is for.
struct Tokens {
  std::vector<std::string> texts;
  std::vector<std::int32_t> types;

  void set(const JsonObject& where, const std::string& text, const Json& id, std::int32_t type) {
    check<DataError>(id.is_number_unsigned() && id.get<std::uint64_t>() < texts.size(), where.origin(),
                     "The token \"{}\" has the id {}; the model's embedding has {} rows.", text, id.dump(),
                     texts.size());
    texts[id.get<std::size_t>()] = text;
    types[id.get<std::size_t>()] = type;
  }
};

// Turns of a chat and the like are control tokens for llama.cpp even where tokenizer.json does not call them special.
bool looks_special(std::string_view text) { return text.starts_with("<|") && text.ends_with("|>"); }

void add_token(const JsonObject& added, const Json& id, Tokens& tokens) {
  const std::string text = added.string("content");
  const bool special = added.boolean("special", false) || looks_special(text);
  tokens.set(added, text, id, special ? gguf_token::control : gguf_token::user_defined);
}

// Those of tokenizer.json, and what tokenizer_config.json adds.
Tokens tokens_of(const JsonObject& json, const JsonObject& model, const JsonObject& config, std::int64_t rows) {
  Tokens tokens{std::vector<std::string>(static_cast<std::size_t>(rows)),
                std::vector<std::int32_t>(static_cast<std::size_t>(rows), gguf_token::unused)};
  for (std::size_t i = 0; i < tokens.texts.size(); ++i) tokens.texts[i] = fmt::format("[PAD{}]", i);
  const auto vocabulary = model.object("vocab");
  if (!vocabulary) model.fail_key("vocab", "an object of tokens and ids");
  for (const auto& [text, id] : vocabulary->json().items()) tokens.set(model, text, id, gguf_token::normal);
  if (json.has("added_tokens")) {
    for (const Json& each : json.json()["added_tokens"]) {
      add_token(JsonObject(each, json.origin() + ": added_tokens"), each.value("id", Json()), tokens);
    }
  }
  if (const auto more = config.object("added_tokens_decoder")) {
    for (const auto& [id, each] : more->json().items())
      add_token(JsonObject(each, more->origin()), parse_json(id, more->origin()), tokens);
  }
  return tokens;
}

std::vector<std::string> merges_of(const JsonObject& model) {
  if (!model.has("merges") || !model.json()["merges"].is_array()) model.fail_key("merges", "a list");
  std::vector<std::string> merges;
  for (const Json& merge : model.json()["merges"]) {
    const bool pair = merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string();
    if (!pair && !merge.is_string()) model.fail_key("merges", "a list of \"left right\" or of pairs");
    const std::string text =
        pair ? fmt::format("{} {}", merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>())
             : merge.get<std::string>();
    if (text.starts_with("#version")) continue;
    check<DataError>(std::count(text.begin(), text.end(), ' ') == 1, model.origin(),
                     "The merge \"{}\" is no two tokens with a space between them.", text);
    merges.push_back(text);
  }
  return merges;
}

// Whether the tokenizer itself puts a token before each text.
bool begins_with_token(const Json& post_processor) {
  if (!post_processor.is_object()) return false;
  if (post_processor.contains("processors") && post_processor["processors"].is_array()) {
    const Json& steps = post_processor["processors"];
    return std::any_of(steps.begin(), steps.end(), begins_with_token);
  }
  const auto single = post_processor.find("single");
  return single != post_processor.end() && single->is_array() && !single->empty() &&
         single->front().contains("SpecialToken");
}

// A token of the config is a string, or an object with its "content".
std::string named_token(const JsonObject& config, const char* name) {
  if (!config.has(name)) return {};
  return config.json()[name].is_object() ? config.object(name)->string("content") : config.string(name);
}

void add_named_tokens(const JsonObject& config, const Tokens& tokens, GgufMetadata& to) {
  constexpr std::array<std::pair<const char*, const char*>, 4> names{
      {{"bos_token", "bos"}, {"eos_token", "eos"}, {"unk_token", "unknown"}, {"pad_token", "padding"}}};
  for (const auto& [name, key] : names) {
    const std::string text = named_token(config, name);
    const auto at = std::find(tokens.texts.begin(), tokens.texts.end(), text);
    if (text.empty() || at == tokens.texts.end()) continue;
    to.emplace_back(fmt::format("tokenizer.ggml.{}_token_id", key),
                    static_cast<std::uint32_t>(at - tokens.texts.begin()));
  }
}

void add_templates(const JsonObject& config, GgufMetadata& to) {
  if (!config.has("chat_template")) return;
  const Json& given = config.json()["chat_template"];
  if (given.is_string()) {
    to.emplace_back("tokenizer.chat_template", given.get<std::string>());
    return;
  }
  if (!given.is_array()) config.fail_key("chat_template", "a string, or a list of named ones");
  std::vector<std::string> names;
  for (const Json& each : given) {
    const JsonObject named(each, config.origin() + ": chat_template");
    const std::string name = named.string("name"), text = named.string("template");
    if (name == "default") {
      to.emplace_back("tokenizer.chat_template", text);
    } else {
      names.push_back(name);
      to.emplace_back("tokenizer.chat_template." + name, text);
    }
  }
  if (!names.empty()) to.emplace_back("tokenizer.chat_templates", names);
}

const GgufPre& checked_pre(const JsonObject& json, const JsonObject& model) {
  if (model.string("type", "BPE") != "BPE") model.fail_key("type", "\"BPE\", as GGUF's byte-level tokenizers are");
  if (model.boolean("byte_fallback", false)) model.fail_key("byte_fallback", "false, as in byte-level tokenizers");
  const GgufPre* pre = gguf_pre_of(json.json());
  check<DataError>(pre != nullptr, json.origin(),
                   "The \"pre_tokenizer\" cuts words in a way that GGUF files have no name for that is known here; "
                   "those of {} are known, and with "
                   "another one llama.cpp would make other tokens.",
                   gguf_pre_names());
  const auto normalizer = json.object("normalizer");
  check<DataError>(!normalizer || normalizer->string("type") == "NFC", json.origin(),
                   "The \"normalizer\" is \"{}\"; a GGUF file can have none or NFC.",
                   normalizer ? normalizer->string("type") : "");
  return *pre;
}

}  // namespace

GgufMetadata gguf_tokenizer(const HfTokenizer& files, std::int64_t rows, const std::string& origin) {
  const JsonObject json(files.tokenizer, origin), config(files.config, origin);
  const auto model = json.object("model");
  if (!model) json.fail_key("model", "an object");
  const GgufPre& pre = checked_pre(json, *model);
  Tokens tokens = tokens_of(json, *model, config, rows);
  GgufMetadata metadata{{"tokenizer.ggml.model", std::string("gpt2")}, {"tokenizer.ggml.pre", std::string(pre.name)}};
  add_named_tokens(config, tokens, metadata);
  const bool adds_bos =
      config.boolean("add_bos_token", begins_with_token(files.tokenizer.value("post_processor", Json())));
  metadata.emplace_back("tokenizer.ggml.add_bos_token", adds_bos);
  add_templates(config, metadata);
  metadata.emplace_back("tokenizer.ggml.tokens", std::move(tokens.texts));
  metadata.emplace_back("tokenizer.ggml.token_type", std::move(tokens.types));
  metadata.emplace_back("tokenizer.ggml.merges", merges_of(*model));
  return metadata;
}

}  // namespace nibble
