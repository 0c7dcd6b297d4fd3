#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "nibble/text/jinja/operators.h"
#include "nibble/text/jinja/unicode.h"

namespace nibble::jinja {
namespace {

struct Conversion {
  bool left = false;
  bool zero = false;
  bool plus = false;
  std::size_t width = 0;
  int precision = -1;
  char type = 's';
};

std::size_t read_count(const std::string& text, std::size_t& at) {
  unsigned count = 0;
  const auto result = std::from_chars(text.data() + at, text.data() + text.size(), count);
  if (result.ec == std::errc::invalid_argument) return 0;
  if (result.ec != std::errc() || count > 1000) throw TemplateError("A width of '%' is at most 1000.");
  at = static_cast<std::size_t>(result.ptr - text.data());
  return count;
}

// `at` is behind the percent sign and moves behind the conversion.
Conversion read_conversion(const std::string& text, std::size_t& at) {
  Conversion result;
  for (; at < text.size(); ++at) {
    if (text[at] == '-') {
      result.left = true;
    } else if (text[at] == '0') {
      result.zero = true;
    } else if (text[at] == '+') {
      result.plus = true;
    } else {
      break;
    }
  }
  result.width = read_count(text, at);
  if (at < text.size() && text[at] == '.') {
    ++at;
    result.precision = static_cast<int>(read_count(text, at));
  }
  if (at >= text.size()) throw TemplateError("The string before '%' ends within a conversion.");
  result.type = text[at++];
  return result;
}

std::string convert_number(const Conversion& how, const Value& value) {
  if (!value.is_number()) {
    throw TemplateError(fmt::format("%{} needs a number, not a {}.", how.type, name_of(value.kind())));
  }
  const int precision = how.precision < 0 ? 6 : how.precision;
  const auto whole = [&] { return value.is_integral() ? value.integral() : static_cast<std::int64_t>(value.number()); };
  std::string text;
  switch (how.type) {
    case 'd':
    case 'i': text = std::to_string(whole()); break;
    case 'x': text = fmt::format("{:x}", whole()); break;
    case 'X': text = fmt::format("{:X}", whole()); break;
    case 'o': text = fmt::format("{:o}", whole()); break;
    case 'e': text = fmt::format("{:.{}e}", value.number(), precision); break;
    case 'g': text = fmt::format("{:.{}g}", value.number(), precision); break;
    case 'f': text = fmt::format("{:.{}f}", value.number(), precision); break;
    default: throw TemplateError(fmt::format("The conversion %{} is not supported.", how.type));
  }
  if (how.plus && text[0] != '-') text.insert(text.begin(), '+');
  if (how.zero && !how.left && text.size() < how.width) {
    text.insert(text[0] == '-' || text[0] == '+' ? 1 : 0, how.width - text.size(), '0');
  }
  return text;
}

std::string convert(const Conversion& how, const Value& value) {
  std::string text;
  if (how.type == 's' || how.type == 'r') {
    text = how.type == 's' ? to_text(value) : to_repr(value);
    if (how.precision >= 0) {
      const auto offsets = unicode::offsets(text);
      text.resize(offsets[std::min(static_cast<std::size_t>(how.precision), offsets.size() - 1)]);
    }
  } else {
    text = convert_number(how, value);
  }
  const std::size_t length = unicode::length(text);
  const std::string pad(how.width > length ? how.width - length : 0, ' ');
  return how.left ? text + pad : pad + text;
}

}  // namespace

std::string format_percent(const std::string& text, const Value& arguments) {
  const List items = arguments.is(Kind::tuple) ? arguments.items() : List{arguments};
  std::string result;
  std::size_t next = 0;
  for (std::size_t at = 0; at < text.size();) {
    if (text[at] != '%') {
      result += text[at++];
      continue;
    }
    ++at;
    const Conversion how = read_conversion(text, at);
    if (how.type == '%') {
      result += '%';
      continue;
    }
    if (next >= items.size()) throw TemplateError("There are fewer arguments than conversions in a string before '%'.");
    result += convert(how, items[next++]);
    if (result.size() > max_text) throw TemplateError("A formatted string grows too long.");
  }
  if (next < items.size() && !(items.size() == 1 && arguments.is_dict())) {
    throw TemplateError("There are more arguments than conversions in a string before '%'.");
  }
  return result;
}

}  // namespace nibble::jinja
