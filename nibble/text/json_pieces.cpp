#include "nibble/text/json_pieces.h"

#include "nibble/base/error.h"
#include "nibble/text/utf8.h"

namespace nibble::text {

std::vector<JsonObject> read_objects(const JsonObject& json, std::string_view key) {
  const auto found = json.json().find(key);
  if (found == json.json().end() || !found->is_array()) json.fail_key(key, "a list of objects");
  std::vector<JsonObject> objects;
  for (const Json& item : *found) {
    objects.emplace_back(item, fmt::format("{}: {}[{}]", json.origin(), key, objects.size()));
  }
  return objects;
}

std::string read_char(const JsonObject& json, std::string_view key) {
  std::string text = json.string(key);
  if (text.empty() || check_utf8(text, 0) != static_cast<int>(text.size())) json.fail_key(key, "one character");
  return text;
}

PatternText read_pattern(const JsonObject& json) {
  const auto pattern = json.object("pattern");
  if (!pattern) json.fail_key("pattern", "an object with \"String\" or \"Regex\"");
  if (pattern->has("Regex")) return {pattern->string("Regex"), true};
  return {pattern->string("String"), false};
}

}  // namespace nibble::text
