#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/text/jinja/value.h"

// Python's str methods that filters and methods share. A negative limit means none.
namespace nibble::jinja {

// Throws TemplateError naming `function` where the value is not a string.
const std::string& need_string(const Value& value, std::string_view function);

std::vector<std::string> split_blanks(std::string_view text, std::int64_t limit, bool from_right);
std::vector<std::string> split_at(std::string_view text, std::string_view mark, std::int64_t limit, bool from_right);
std::vector<std::string> split_lines(std::string_view text, bool keep_ends);
std::string replaced(std::string_view text, std::string_view old, std::string_view with, std::int64_t limit);
// str.format with plain fields: {} {0} {name}.
std::string format_braces(std::string_view text, const Arguments& arguments);

}  // namespace nibble::jinja
