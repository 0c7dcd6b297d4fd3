#pragma once

#include <string>
#include <string_view>

namespace nibble::jinja {

// \r\n and \r become \n.
std::string normalize_newlines(std::string_view text);
// The body of a string literal with Python's escapes read. Throws DataError naming the line.
std::string unescape(std::string_view body, int line);

}  // namespace nibble::jinja
