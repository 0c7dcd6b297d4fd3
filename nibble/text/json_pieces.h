#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "nibble/io/json.h"

namespace nibble::text {

// The objects of the list `key`, which must be there.
std::vector<JsonObject> read_objects(const JsonObject& json, std::string_view key);

// The string `key`, which must be one character.
std::string read_char(const JsonObject& json, std::string_view key);

// The {"String": ...} or {"Regex": ...} of a "pattern" key.
struct PatternText {
  std::string text;
  bool is_regex;
};
PatternText read_pattern(const JsonObject& json);

}  // namespace nibble::text
