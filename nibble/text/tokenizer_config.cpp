#include "nibble/text/tokenizer_config.h"

#include <charconv>

#include "nibble/base/error.h"

namespace nibble::text {
namespace {

// A token is a string, or an object with its "content".
std::optional<std::string> read_token(const JsonObject& json, std::string_view key) {
  if (!json.has(key)) return std::nullopt;
  if (json.json().find(key)->is_object()) return json.object(key)->string("content");
  return json.string(key);
}

std::optional<bool> read_flag(const JsonObject& json, std::string_view key) {
  if (!json.has(key)) return std::nullopt;
  return json.boolean(key);
}

}  // namespace

TokenizerConfig read_tokenizer_config(std::string_view json, std::string_view origin) { return tokenizer_config_of(parse_json(json, origin), origin); }

TokenizerConfig tokenizer_config_of(const Json& json, std::string_view origin) {
  const JsonObject object(json, std::string(origin));
  TokenizerConfig config;
  config.bos_token = read_token(object, "bos_token");
  config.eos_token = read_token(object, "eos_token");
  config.pad_token = read_token(object, "pad_token");
  config.unk_token = read_token(object, "unk_token");
  config.add_bos_token = read_flag(object, "add_bos_token");
  config.add_eos_token = read_flag(object, "add_eos_token");
  const auto added = object.object("added_tokens_decoder");
  if (!added) return config;
  for (const auto& [key, value] : added->json().items()) {
    TokenId id = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    check<DataError>(error == std::errc() && end == key.data() + key.size() && id <= max_token_id, added->origin(),
                     "The key \"{}\" must be an id from 0 to {}.", key, max_token_id);
    config.added_tokens.push_back(read_added_token(JsonObject(value, fmt::format("{}: {}", added->origin(), key)), id));
  }
  return config;
}

}  // namespace nibble::text
