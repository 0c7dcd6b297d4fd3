#include "nibble/text/jinja/string_literal.h"

#include <charconv>

#include "nibble/base/error.h"
#include "nibble/text/jinja/lexer.h"
#include "nibble/text/jinja/unicode.h"

namespace nibble::jinja {
namespace {

// Reads up to `count` digits at `at`, which moves behind them; returns how many there were.
std::size_t read_digits(std::string_view text, std::size_t& at, std::size_t count, int base, unsigned& value) {
  const std::string_view digits = text.substr(at, count);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
  if (error != std::errc()) return 0;
  const auto used = static_cast<std::size_t>(end - digits.data());
  at += used;
  return used;
}

std::size_t hex_digits_after(char letter) {
  switch (letter) {
    case 'x': return 2;
    case 'u': return 4;
    case 'U': return 8;
    default: return 0;
  }
}

char simple_escape(char letter) {
  switch (letter) {
    case 'n': return '\n';
    case 't': return '\t';
    case 'r': return '\r';
    case 'a': return '\a';
    case 'b': return '\b';
    case 'f': return '\f';
    case 'v': return '\v';
    case '\\':
    case '\'':
    case '"': return letter;
    default: return '\0';
  }
}

// `at` is behind the backslash.
void read_escape(std::string_view body, std::size_t& at, std::string& result, int line) {
  const char letter = body[at];
  unsigned code = 0;
  if (letter >= '0' && letter <= '7') {
    read_digits(body, at, 3, 8, code);
    return unicode::append(result, code);
  }
  ++at;
  if (letter == '\n') return;
  if (const char simple = simple_escape(letter)) {
    result += simple;
  } else if (const std::size_t count = hex_digits_after(letter)) {
    const bool whole = read_digits(body, at, count, 16, code) == count;
    check<DataError>(whole && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff), in_template,
                     "line {}: The escape \\{} needs {} hexadecimal digits of a code point.", line, letter, count);
    unicode::append(result, code);
  } else {
    check<DataError>(letter != 'N', in_template, "line {}: The escape \\N is not supported.", line);
    result += '\\';
    result += letter;
  }
}

}  // namespace

std::string normalize_newlines(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\r') {
      result += '\n';
      if (i + 1 < text.size() && text[i + 1] == '\n') ++i;
    } else {
      result += text[i];
    }
  }
  return result;
}

std::string unescape(std::string_view body, int line) {
  std::string result;
  for (std::size_t at = 0; at < body.size();) {
    if (body[at] != '\\' || at + 1 == body.size()) {
      result += body[at++];
    } else {
      read_escape(body, ++at, result, line);
    }
  }
  return result;
}

}  // namespace nibble::jinja
