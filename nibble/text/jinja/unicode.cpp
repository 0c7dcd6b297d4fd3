#include "nibble/text/jinja/unicode.h"

#include <utf8proc.h>

namespace nibble::jinja::unicode {
namespace {

const auto* bytes(std::string_view text) { return reinterpret_cast<const utf8proc_uint8_t*>(text.data()); }

utf8proc_int32_t code_of(char32_t code) { return static_cast<utf8proc_int32_t>(code); }

template <typename Mapping>
std::string mapped(std::string_view text, Mapping&& mapping) {
  std::string result;
  result.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t begin = at;
    const char32_t code = decode(text, at);
    const char32_t target = mapping(code);
    if (target == code) {
      result.append(text.substr(begin, at - begin));
    } else {
      append(result, target);
    }
  }
  return result;
}

char32_t to_upper(char32_t code) { return static_cast<char32_t>(utf8proc_toupper(code_of(code))); }
char32_t to_lower(char32_t code) { return static_cast<char32_t>(utf8proc_tolower(code_of(code))); }
char32_t to_title(char32_t code) { return static_cast<char32_t>(utf8proc_totitle(code_of(code))); }

constexpr char32_t sharp_s = 0xdf;

template <typename Drop>
std::string_view strip_if(std::string_view text, Side side, Drop&& drop) {
  std::size_t begin = 0;
  std::size_t end = text.size();
  if (side != Side::right) {
    for (std::size_t at = 0; begin < text.size(); begin = at) {
      if (!drop(decode(text, at))) break;
    }
  }
  if (side == Side::left) return text.substr(begin);
  while (end > begin) {
    std::size_t start = end - 1;
    while (start > begin && (static_cast<unsigned char>(text[start]) & 0xc0u) == 0x80u) --start;
    std::size_t at = start;
    if (!drop(decode(text, at))) break;
    end = start;
  }
  return text.substr(begin, end - begin);
}

}  // namespace

char32_t decode(std::string_view text, std::size_t& at) {
  const auto first = static_cast<unsigned char>(text[at]);
  if (first < 0x80) {
    ++at;
    return first;
  }
  utf8proc_int32_t code = 0;
  const auto used = utf8proc_iterate(bytes(text) + at, static_cast<utf8proc_ssize_t>(text.size() - at), &code);
  if (used <= 0) {
    ++at;
    return 0xfffd;
  }
  at += static_cast<std::size_t>(used);
  return static_cast<char32_t>(code);
}

void append(std::string& text, char32_t code) {
  utf8proc_uint8_t encoded[4];
  const auto size = utf8proc_encode_char(code_of(code), encoded);
  text.append(reinterpret_cast<const char*>(encoded), static_cast<std::size_t>(size));
}

std::size_t length(std::string_view text) {
  std::size_t count = 0;
  for (std::size_t at = 0; at < text.size(); ++count) decode(text, at);
  return count;
}

std::vector<std::size_t> offsets(std::string_view text) {
  std::vector<std::size_t> result;
  result.reserve(text.size() + 1);
  for (std::size_t at = 0; at < text.size();) {
    result.push_back(at);
    decode(text, at);
  }
  result.push_back(text.size());
  return result;
}

bool is_space(char32_t code) {
  return (code >= 9 && code <= 13) || (code >= 0x1c && code <= 0x20) || code == 0x85 || code == 0xa0 ||
         code == 0x1680 || (code >= 0x2000 && code <= 0x200a) || code == 0x2028 || code == 0x2029 || code == 0x202f ||
         code == 0x205f || code == 0x3000;
}

bool is_alphabetic(char32_t code) {
  const auto category = utf8proc_category(code_of(code));
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool is_upper(char32_t code) { return utf8proc_category(code_of(code)) == UTF8PROC_CATEGORY_LU; }
bool is_lower(char32_t code) { return utf8proc_category(code_of(code)) == UTF8PROC_CATEGORY_LL; }

bool is_printable(char32_t code) {
  if (code == ' ') return true;
  const auto category = utf8proc_category(code_of(code));
  return category != UTF8PROC_CATEGORY_CN && category < UTF8PROC_CATEGORY_ZS;
}

std::string upper(std::string_view text) {
  std::string result;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t begin = at;
    const char32_t code = decode(text, at);
    if (code == sharp_s) {
      result += "SS";
    } else if (code == 0xfffd) {
      result.append(text.substr(begin, at - begin));
    } else {
      append(result, to_upper(code));
    }
  }
  return result;
}

std::string lower(std::string_view text) { return mapped(text, to_lower); }

std::string capitalize(std::string_view text) {
  bool first = true;
  return mapped(text, [&](char32_t code) {
    const char32_t target = first ? to_title(code) : to_lower(code);
    first = false;
    return target;
  });
}

std::string title(std::string_view text) {
  bool inside = false;
  return mapped(text, [&](char32_t code) {
    const bool letter = is_alphabetic(code);
    const char32_t target = !letter ? code : inside ? to_lower(code) : to_title(code);
    inside = letter;
    return target;
  });
}

std::string_view strip(std::string_view text, Side side) { return strip_if(text, side, is_space); }

std::string_view strip(std::string_view text, Side side, std::string_view characters) {
  std::vector<char32_t> set;
  for (std::size_t at = 0; at < characters.size();) set.push_back(decode(characters, at));
  return strip_if(text, side, [&](char32_t code) {
    for (const char32_t c : set) {
      if (c == code) return true;
    }
    return false;
  });
}

}  // namespace nibble::jinja::unicode
