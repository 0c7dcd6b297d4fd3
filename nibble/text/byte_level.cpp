#include "nibble/text/byte_level.h"

#include <array>
#include <cstdint>

#include "nibble/text/utf8.h"

namespace nibble::text {
namespace {

constexpr std::size_t alphabet_end = 0x144;  // one past the highest character

struct Alphabet {
  std::array<std::string, 256> chars;
  std::array<std::int16_t, alphabet_end> bytes;

  Alphabet() {
    bytes.fill(-1);
    char32_t next = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      const char32_t code = printable ? byte : next++;
      chars[byte] = to_utf8(code);
      bytes[code] = static_cast<std::int16_t>(byte);
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet instance;
  return instance;
}

}  // namespace

std::string_view byte_level_char(unsigned char byte) { return alphabet().chars[byte]; }

std::optional<unsigned char> byte_of_level_char(char32_t code) {
  if (code >= alphabet_end || alphabet().bytes[code] < 0) return std::nullopt;
  return static_cast<unsigned char>(alphabet().bytes[code]);
}

std::string to_byte_level(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() * 2);
  for (const char byte : bytes) out.append(byte_level_char(static_cast<unsigned char>(byte)));
  return out;
}

std::string from_byte_level(std::string_view token) {
  std::string out;
  for (std::size_t at = 0; at < token.size();) {
    const Utf8Char next = decode_utf8(token, at);
    const auto byte = byte_of_level_char(next.code);
    if (!byte) return std::string(token);
    out.push_back(static_cast<char>(*byte));
    at += next.length;
  }
  return out;
}

}  // namespace nibble::text
