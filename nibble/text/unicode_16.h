#pragma once

#include <span>
#include <string_view>

namespace nibble::text {

// Characters that Unicode 15 to 16 brought, or put into another general category ("Lo"). Python's `tokenizers` matches patterns by Unicode
// 16, and the libraries here may be older.
struct LaterCharacters {
  char32_t first, last;
  std::string_view category;
};
std::span<const LaterCharacters> later_characters();

// The category of one of them; empty of any other.
std::string_view later_category(char32_t code);

}  // namespace nibble::text
