#include "nibble/cli/terminal.h"

#include "nibble/text/utf8.h"

#include <fmt/format.h>
#include <unistd.h>

namespace nibble::cli {

bool is_terminal(std::FILE* file) { return ::isatty(::fileno(file)) == 1; }

std::string printable(std::string_view given) {
  const std::string text = text::replace_broken_utf8(given);
  std::string result;
  for (std::size_t at = 0; at < text.size();) {
    const auto [code, length] = text::decode_utf8(text, at);
    const bool control = (code < 0x20 && code != '\n' && code != '\t') || (code >= 0x7F && code < 0xA0);
    if (control) {
      result += fmt::format("<{:02X}>", static_cast<std::uint32_t>(code));
    } else {
      result += text.substr(at, length);
    }
    at += length;
  }
  return result;
}

}  // namespace nibble::cli
