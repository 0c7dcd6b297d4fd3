#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace nibble::jinja {

// Errors in templates begin with it.
inline constexpr std::string_view in_template = "chat_template";

enum class TokenKind {
  text,          // as it will be printed, white space control done
  print_begin,   // {{
  print_end,     // }}
  block_begin,   // {%
  block_end,     // %}
  name,
  integer,
  real,
  string,        // unescaped
  op,            // text says which
  end,
};

struct Token {
  TokenKind kind = TokenKind::end;
  std::string text;
  int line = 1;
};

// Cuts a template into tokens as jinja2 does with trim_blocks and lstrip_blocks on. Comments and raw blocks are gone.
// Throws DataError with the line.
std::vector<Token> tokenize(std::string_view source);

}  // namespace nibble::jinja
