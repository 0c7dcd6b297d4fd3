#include "nibble/text/jinja/text_functions.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "nibble/text/jinja/operators.h"
#include "nibble/text/jinja/unicode.h"

namespace nibble::jinja {
namespace {

void append_checked(std::string& result, std::string_view text) {
  if (result.size() + text.size() > max_text) throw TemplateError("A string grows too long.");
  result += text;
}

std::vector<std::string> blanks_from_right(std::string_view text, std::int64_t limit) {
  std::vector<std::string> result;
  text = unicode::strip(text, unicode::Side::right);
  while (!text.empty()) {
    if (limit >= 0 && static_cast<std::int64_t>(result.size()) == limit) {
      result.emplace_back(text);
      break;
    }
    std::size_t begin = text.size();
    for (const std::size_t start : unicode::offsets(text)) {
      std::size_t at = start;
      if (start < text.size() && unicode::is_space(unicode::decode(text, at))) begin = at;
    }
    if (begin == text.size()) begin = 0;
    result.emplace_back(text.substr(begin));
    text = unicode::strip(text.substr(0, begin), unicode::Side::right);
  }
  std::reverse(result.begin(), result.end());
  return result;
}

bool is_line_end(char32_t code) {
  return (code >= 10 && code <= 13) || (code >= 0x1c && code <= 0x1e) || code == 0x85 || code == 0x2028 ||
         code == 0x2029;
}

}  // namespace

const std::string& need_string(const Value& value, std::string_view function) {
  if (value.is_undefined()) throw TemplateError(value.undefined_message());
  if (!value.is_string()) {
    throw TemplateError(fmt::format("{}() needs a string, not a {}.", function, name_of(value.kind())));
  }
  return value.string();
}

std::vector<std::string> split_blanks(std::string_view text, std::int64_t limit, bool from_right) {
  if (from_right && limit >= 0) return blanks_from_right(text, limit);
  std::vector<std::string> result;
  text = unicode::strip(text, unicode::Side::left);
  while (!text.empty()) {
    if (limit >= 0 && static_cast<std::int64_t>(result.size()) == limit) {
      result.emplace_back(text);
      break;
    }
    std::size_t end = 0;
    for (std::size_t at = 0; end < text.size(); end = at) {
      if (unicode::is_space(unicode::decode(text, at))) break;
    }
    result.emplace_back(text.substr(0, end));
    text = unicode::strip(text.substr(end), unicode::Side::left);
  }
  return result;
}

std::vector<std::string> split_at(std::string_view text, std::string_view mark, std::int64_t limit, bool from_right) {
  if (mark.empty()) throw TemplateError("split() needs a separator that is not empty.");
  std::vector<std::string> result;
  while (limit < 0 || static_cast<std::int64_t>(result.size()) < limit) {
    const std::size_t at = from_right ? text.rfind(mark) : text.find(mark);
    if (at == text.npos) break;
    if (from_right) {
      result.emplace_back(text.substr(at + mark.size()));
      text = text.substr(0, at);
    } else {
      result.emplace_back(text.substr(0, at));
      text = text.substr(at + mark.size());
    }
  }
  result.emplace_back(text);
  if (from_right) std::reverse(result.begin(), result.end());
  return result;
}

std::vector<std::string> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string> result;
  std::size_t begin = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = at;
    const char32_t code = unicode::decode(text, at);
    if (!is_line_end(code)) continue;
    if (code == '\r' && at < text.size() && text[at] == '\n') ++at;
    result.emplace_back(text.substr(begin, (keep_ends ? at : end) - begin));
    begin = at;
  }
  if (begin < text.size()) result.emplace_back(text.substr(begin));
  return result;
}

std::string replaced(std::string_view text, std::string_view old, std::string_view with, std::int64_t limit) {
  std::string result;
  std::int64_t done = 0;
  std::size_t at = 0;
  while (limit < 0 || done < limit) {
    const std::size_t found = text.find(old, at);
    if (found == text.npos) break;
    append_checked(result, text.substr(at, found - at));
    append_checked(result, with);
    at = found + old.size();
    ++done;
    if (!old.empty()) continue;
    if (at == text.size()) return result;
    const std::size_t begin = at;
    unicode::decode(text, at);
    append_checked(result, text.substr(begin, at - begin));
  }
  append_checked(result, text.substr(at));
  return result;
}

std::string format_braces(std::string_view text, const Arguments& arguments) {
  std::string result;
  std::size_t next = 0;
  const auto value_of = [&](std::string_view field) -> const Value& {
    std::size_t number = 0;
    const auto read = std::from_chars(field.data(), field.data() + field.size(), number);
    if (field.empty()) number = next++;
    if (field.empty() || (read.ec == std::errc() && read.ptr == field.data() + field.size())) {
      if (number < arguments.positional.size()) return arguments.positional[number];
    }
    for (const auto& [name, value] : arguments.named) {
      if (name == field) return value;
    }
    throw TemplateError(fmt::format("format() has no argument for the field '{{{}}}'.", field));
  };
  for (std::size_t at = 0; at < text.size();) {
    const char c = text[at];
    if (c != '{' && c != '}') {
      result += c;
      ++at;
    } else if (at + 1 < text.size() && text[at + 1] == c) {
      result += c;
      at += 2;
    } else {
      const std::size_t end = c == '{' ? text.find('}', at) : text.npos;
      if (end == text.npos) throw TemplateError("A brace of the string before format() is not closed.");
      append_checked(result, to_text(value_of(text.substr(at + 1, end - at - 1))));
      at = end + 1;
    }
  }
  return result;
}

}  // namespace nibble::jinja
