#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "nibble/text/jinja/unicode.h"
#include "nibble/text/jinja/value.h"

namespace nibble::jinja {
namespace {

// The shortest digits that read back, laid out as Python's repr: an exponent below 1e-4 and from 1e16 on.
std::string text_of_real(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[40];
  const auto written = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
  std::string text(buffer, written.ptr);
  const auto mark = text.find('e');
  const int exponent = std::stoi(text.substr(mark + 1));
  std::string sign;
  std::string digits;
  for (const char c : text.substr(0, mark)) {
    if (c == '-') {
      sign = "-";
    } else if (c != '.') {
      digits += c;
    }
  }
  if (exponent < -4 || exponent >= 16) {
    const std::string fraction = digits.size() > 1 ? "." + digits.substr(1) : "";
    return fmt::format("{}{}{}e{}{:02}", sign, digits[0], fraction, exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0) return sign + "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
  const auto whole = static_cast<std::size_t>(exponent) + 1;
  if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

std::string repr_of_string(std::string_view text) {
  const bool has_single = text.find('\'') != text.npos;
  const char quote = has_single && text.find('"') == text.npos ? '"' : '\'';
  std::string result(1, quote);
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t begin = at;
    const char32_t code = unicode::decode(text, at);
    if (code == static_cast<char32_t>(quote) || code == '\\') {
      result += '\\';
      result += static_cast<char>(code);
    } else if (code == '\n') {
      result += "\\n";
    } else if (code == '\r') {
      result += "\\r";
    } else if (code == '\t') {
      result += "\\t";
    } else if (unicode::is_printable(code)) {
      result.append(text.substr(begin, at - begin));
    } else if (code < 0x100) {
      result += fmt::format("\\x{:02x}", static_cast<unsigned>(code));
    } else if (code < 0x10000) {
      result += fmt::format("\\u{:04x}", static_cast<unsigned>(code));
    } else {
      result += fmt::format("\\U{:08x}", static_cast<unsigned>(code));
    }
  }
  return result + quote;
}

std::string repr_of_items(const List& items) {
  std::string result;
  for (const Value& item : items) {
    if (!result.empty()) result += ", ";
    result += to_repr(item);
  }
  return result;
}

void append_escape(std::string& out, char32_t code) { out += fmt::format("\\u{:04x}", static_cast<unsigned>(code)); }

void append_json_string(std::string& out, std::string_view text, bool ensure_ascii) {
  out += '"';
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t begin = at;
    const char32_t code = unicode::decode(text, at);
    switch (code) {
      case '"': out += "\\\""; continue;
      case '\\': out += "\\\\"; continue;
      case '\n': out += "\\n"; continue;
      case '\r': out += "\\r"; continue;
      case '\t': out += "\\t"; continue;
      case '\b': out += "\\b"; continue;
      case '\f': out += "\\f"; continue;
      default: break;
    }
    if (code < 0x20 || (ensure_ascii && code > 0x7e && code < 0x10000)) {
      append_escape(out, code);
    } else if (ensure_ascii && code >= 0x10000) {
      append_escape(out, 0xd800 + ((code - 0x10000) >> 10));
      append_escape(out, 0xdc00 + ((code - 0x10000) & 0x3ff));
    } else {
      out.append(text.substr(begin, at - begin));
    }
  }
  out += '"';
}

std::string json_of_scalar(const Value& value) {
  switch (value.kind()) {
    case Kind::none: return "null";
    case Kind::boolean: return value.boolean() ? "true" : "false";
    case Kind::integer: return std::to_string(value.integral());
    case Kind::real: {
      const double number = value.number();
      if (std::isnan(number)) return "NaN";
      if (std::isinf(number)) return number < 0 ? "-Infinity" : "Infinity";
      return text_of_real(number);
    }
    case Kind::undefined: throw TemplateError(value.undefined_message());
    default: throw TemplateError(fmt::format("A {} cannot be written as JSON.", name_of(value.kind())));
  }
}

class JsonWriter {
 public:
  explicit JsonWriter(const JsonStyle& style) : style_(style) {}

  void write(const Value& value) {
    if (value.is_string()) {
      append_json_string(out_, value.string(), style_.ensure_ascii);
    } else if (value.is_sequence()) {
      write_group('[', ']', value.items(), [&](const Value& item) { write(item); });
    } else if (value.is_dict()) {
      auto entries = value.dict().entries();
      if (style_.sort_keys) {
        std::stable_sort(entries.begin(), entries.end(),
                         [](const auto& a, const auto& b) { return compare(a.first, b.first) < 0; });
      }
      write_group('{', '}', entries, [&](const auto& entry) { write_entry(entry.first, entry.second); });
    } else {
      out_ += json_of_scalar(value);
    }
  }

  std::string take() { return std::move(out_); }

 private:
  template <typename Items, typename Write>
  void write_group(char open, char close, const Items& items, Write&& write_item) {
    out_ += open;
    if (!items.empty()) {
      ++level_;
      bool first = true;
      for (const auto& item : items) {
        if (!first) out_ += style_.item_separator;
        first = false;
        new_line();
        write_item(item);
      }
      --level_;
      new_line();
    }
    out_ += close;
  }

  void write_entry(const Value& key, const Value& value) {
    append_json_string(out_, key.is_string() ? key.string() : json_of_scalar(key), style_.ensure_ascii);
    out_ += style_.key_separator;
    write(value);
  }

  void new_line() {
    if (!style_.indented) return;
    out_ += '\n';
    for (int i = 0; i < level_; ++i) out_ += style_.indent;
  }

  const JsonStyle& style_;
  std::string out_;
  int level_ = 0;
};

Value from_json_at(const nlohmann::ordered_json& json, int level) {
  if (level > 90) throw TemplateError("JSON is nested deeper than 90 levels.");
  using Type = nlohmann::ordered_json::value_t;
  switch (json.type()) {
    case Type::boolean: return json.get<bool>();
    case Type::number_integer: return json.get<std::int64_t>();
    case Type::number_unsigned: {
      const auto number = json.get<std::uint64_t>();
      if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        throw TemplateError(fmt::format("The integer {} is larger than 2^63 - 1.", number));
      }
      return static_cast<std::int64_t>(number);
    }
    case Type::number_float: return json.get<double>();
    case Type::string: return json.get_ref<const std::string&>();
    case Type::array: {
      List items;
      items.reserve(json.size());
      for (const auto& item : json) items.push_back(from_json_at(item, level + 1));
      return Value::list(std::move(items));
    }
    case Type::object: {
      Dict dict;
      for (const auto& [key, item] : json.items()) dict.set(key, from_json_at(item, level + 1));
      return Value::dict(std::move(dict));
    }
    default: return Value::none();
  }
}

}  // namespace

std::string to_repr(const Value& value) {
  switch (value.kind()) {
    case Kind::undefined: return "Undefined";
    case Kind::none: return "None";
    case Kind::boolean: return value.boolean() ? "True" : "False";
    case Kind::integer: return std::to_string(value.integral());
    case Kind::real: return text_of_real(value.number());
    case Kind::string: return repr_of_string(value.string());
    case Kind::list: return "[" + repr_of_items(value.items()) + "]";
    case Kind::tuple: return "(" + repr_of_items(value.items()) + (value.items().size() == 1 ? ",)" : ")");
    case Kind::dict: {
      std::string result;
      for (const auto& [key, item] : value.dict().entries()) {
        if (!result.empty()) result += ", ";
        result += to_repr(key) + ": " + to_repr(item);
      }
      return "{" + result + "}";
    }
    default: throw TemplateError(fmt::format("A {} cannot be printed.", name_of(value.kind())));
  }
}

std::string to_text(const Value& value) {
  if (value.is_string()) return value.string();
  if (value.is_undefined()) return "";
  return to_repr(value);
}

std::string to_json(const Value& value, const JsonStyle& style) {
  JsonWriter writer(style);
  writer.write(value);
  return writer.take();
}

Value from_json(const nlohmann::ordered_json& json) { return from_json_at(json, 1); }

}  // namespace nibble::jinja
