#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

// Strings are UTF-8 in memory and sequences of code points to the templates. A byte that is not part of valid UTF-8
// counts as one code point.
namespace nibble::jinja::unicode {

// The code point at byte `at`, which moves behind it.
char32_t decode(std::string_view text, std::size_t& at);
void append(std::string& text, char32_t code);
std::size_t length(std::string_view text);
// The byte at which each code point begins, and the text's size at the end.
std::vector<std::size_t> offsets(std::string_view text);

// What Python's str methods take for white space.
bool is_space(char32_t code);
bool is_alphabetic(char32_t code);
bool is_upper(char32_t code);
bool is_lower(char32_t code);
bool is_printable(char32_t code);

std::string upper(std::string_view text);
std::string lower(std::string_view text);
// The first letter large, the others small.
std::string capitalize(std::string_view text);
// As Python's str.title: each run of letters capitalised.
std::string title(std::string_view text);

enum class Side { left, right, both };
std::string_view strip(std::string_view text, Side side);
std::string_view strip(std::string_view text, Side side, std::string_view characters);

}  // namespace nibble::jinja::unicode
