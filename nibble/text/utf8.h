#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble::text {

constexpr char32_t replacement_character = 0xFFFD;

// A code point and the number of bytes that it takes.
struct Utf8Char {
  char32_t code;
  std::uint32_t length;
};

// Bytes of the character that starts with `lead`, in valid UTF-8.
constexpr std::uint32_t utf8_length(unsigned char lead) {
  return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

// The character at `at`. The text must be valid UTF-8 and `at` the first byte of a character.
Utf8Char decode_utf8(std::string_view text, std::size_t at);

void append_utf8(std::string& out, char32_t code);
std::string to_utf8(char32_t code);

// Length of the valid character at `at`, or minus the length of the broken sequence that one U+FFFD stands for (the
// "maximal subpart" of Unicode's section 3.9, as Python and Rust replace it).
int check_utf8(std::string_view text, std::size_t at);

// Offset of the first broken sequence, or the length of the text.
std::size_t valid_utf8_prefix(std::string_view text);

// The text with each broken sequence replaced by U+FFFD.
std::string replace_broken_utf8(std::string_view text);

}  // namespace nibble::text
