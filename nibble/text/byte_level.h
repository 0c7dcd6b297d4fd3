#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace nibble::text {

// The alphabet of byte-level BPE (Radford et al. 2019): every byte has one printable character, so that any bytes can
// be written as a token. Printable Latin-1 stands for itself, the other 68 bytes for U+0100 and on.

// The character of `byte`, one or two bytes of UTF-8.
std::string_view byte_level_char(unsigned char byte);

// The byte that the character `code` stands for, if it is of the alphabet.
std::optional<unsigned char> byte_of_level_char(char32_t code);

// Every byte of `bytes` as its character.
std::string to_byte_level(std::string_view bytes);

// The bytes of a token; one with a character outside the alphabet (an added token) is taken as it is.
std::string from_byte_level(std::string_view token);

}  // namespace nibble::text
