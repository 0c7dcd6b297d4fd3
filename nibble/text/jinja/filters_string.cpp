#include <fmt/format.h>

#include <charconv>
#include <cmath>

#include "nibble/text/jinja/builtins.h"
#include "nibble/text/jinja/interpreter.h"
#include "nibble/text/jinja/operators.h"
#include "nibble/text/jinja/text_functions.h"
#include "nibble/text/jinja/unicode.h"

namespace nibble::jinja {
namespace {

using V = const Value&;
using B = const Bound&;
using unicode::Side;

Value trim(Interpreter&, V v, B b) {
  const std::string text = to_text(v);
  if (!b.has(0) || b[0].is_none()) return unicode::strip(text, Side::both);
  return unicode::strip(text, Side::both, need_string(b[0], "trim"));
}

Value upper(Interpreter&, V v, B) { return unicode::upper(to_text(v)); }
Value lower(Interpreter&, V v, B) { return unicode::lower(to_text(v)); }
Value capitalize(Interpreter&, V v, B) { return unicode::capitalize(to_text(v)); }

// jinja2's own title: a word begins after white space or one of -({[<.
Value title(Interpreter&, V v, B) {
  const std::string text = to_text(v);
  std::string result;
  std::string word;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t begin = at;
    const char32_t code = unicode::decode(text, at);
    word.append(text, begin, at - begin);
    const bool ends = unicode::is_space(code) || (code < 0x80 && std::string_view("-({[<").find(static_cast<char>(
                                                                    code)) != std::string_view::npos);
    if (ends) {
      result += unicode::capitalize(word);
      word.clear();
    }
  }
  return result + unicode::capitalize(word);
}

Value replace(Interpreter&, V v, B b) {
  return replaced(to_text(v), to_text(b[0]), to_text(b[1]), b.integer(2, -1));
}

Value string(Interpreter&, V v, B) { return v.is_string() ? v : Value(to_text(v)); }

Value indent(Interpreter&, V v, B b) {
  std::string margin;
  if (b.has(0) && b[0].is_string()) {
    margin = b[0].string();
  } else {
    const std::int64_t width = b.integer(0, 4);
    if (width < 0 || width > 1000) throw TemplateError("The width of indent is from 0 to 1000.");
    margin.assign(static_cast<std::size_t>(width), ' ');
  }
  const bool first = b.flag(1, false);
  const bool blank = b.flag(2, false);
  // As jinja2, which adds a line end before it splits.
  std::string result;
  if (first) result += margin;
  bool begin = true;
  for (const std::string& line : split_lines(to_text(v) + "\n", false)) {
    if (!begin) result += '\n';
    if (!begin && (blank || !line.empty())) result += margin;
    begin = false;
    result += line;
    if (result.size() > max_text) throw TemplateError("indent makes too long a string.");
  }
  return result;
}

Value wordcount(Interpreter&, V v, B) {
  std::int64_t words = 0;
  bool inside = false;
  const std::string text = to_text(v);
  for (std::size_t at = 0; at < text.size();) {
    const char32_t code = unicode::decode(text, at);
    const bool part = unicode::is_alphabetic(code) || (code >= '0' && code <= '9') || code == '_';
    if (part && !inside) ++words;
    inside = part;
  }
  return words;
}

Value escape(Interpreter&, V v, B) {
  std::string result;
  for (const char c : to_text(v)) {
    switch (c) {
      case '&': result += "&amp;"; break;
      case '<': result += "&lt;"; break;
      case '>': result += "&gt;"; break;
      case '"': result += "&#34;"; break;
      case '\'': result += "&#39;"; break;
      default: result += c;
    }
  }
  return result;
}

bool read_real(std::string_view text, double& value) {
  text = unicode::strip(text, Side::both);
  if (text.starts_with('+')) text.remove_prefix(1);
  const auto read = std::from_chars(text.data(), text.data() + text.size(), value);
  return read.ec == std::errc() && read.ptr == text.data() + text.size() && !text.empty();
}

bool read_integer(std::string_view text, int base, std::int64_t& value) {
  text = unicode::strip(text, Side::both);
  if (text.starts_with('+')) text.remove_prefix(1);
  const bool prefixed = (base == 16 && text.starts_with("0x")) || (base == 8 && text.starts_with("0o")) ||
                        (base == 2 && text.starts_with("0b"));
  if (prefixed) text.remove_prefix(2);
  const auto read = std::from_chars(text.data(), text.data() + text.size(), value, base);
  return read.ec == std::errc() && read.ptr == text.data() + text.size() && !text.empty();
}

bool fits_integer(double value) { return std::abs(value) < 9.2e18; }  // false for a NaN

Value to_integer(Interpreter&, V v, B b) {
  const Value fallback = b.has(0) ? b[0] : Value(0);
  const std::int64_t base = b.integer(1, 10);
  if (base < 2 || base > 36) throw TemplateError("The base of int is from 2 to 36.");
  if (v.is_integral()) return v.integral();
  double real = 0.0;
  std::int64_t integer = 0;
  if (v.is_string() && read_integer(v.string(), static_cast<int>(base), integer)) return integer;
  const bool is_real = v.is(Kind::real) || (v.is_string() && read_real(v.string(), real));
  if (v.is(Kind::real)) real = v.number();
  return is_real && fits_integer(real) ? Value(static_cast<std::int64_t>(real)) : fallback;
}

Value to_real(Interpreter&, V v, B b) {
  if (v.is_number()) return v.number();
  double value = 0.0;
  if (v.is_string() && read_real(v.string(), value)) return value;
  return b.has(0) ? b[0] : Value(0.0);
}

double need_number(V v, std::string_view function) {
  if (v.is_undefined()) throw TemplateError(v.undefined_message());
  if (!v.is_number()) throw TemplateError(fmt::format("{} needs a number, not a {}.", function, name_of(v.kind())));
  return v.number();
}

Value absolute(Interpreter&, V v, B) {
  const double number = need_number(v, "abs");
  if (v.is_integral()) return v.integral() < 0 ? negate(v) : Value(v.integral());
  return std::abs(number);
}

// Always a float in jinja2 unless the value is an integer.
Value round(Interpreter&, V v, B b) {
  const double number = need_number(v, "round");
  const std::int64_t precision = b.integer(0, 0);
  const std::string method = b.text(1, "common");
  if (precision < -300 || precision > 300) throw TemplateError("The precision of round is from -300 to 300.");
  const double scale = std::pow(10.0, static_cast<double>(precision));
  if (method == "ceil") return std::ceil(number * scale) / scale;
  if (method == "floor") return std::floor(number * scale) / scale;
  if (method != "common") throw TemplateError("The method of round is 'common', 'ceil' or 'floor'.");
  if (v.is_integral()) return v.integral();
  if (precision < 0) return std::nearbyint(number * scale) / scale;
  double result = 0.0;
  read_real(fmt::format("{:.{}f}", number, precision), result);
  return result;
}

Value tojson(Interpreter&, V v, B b) {
  JsonStyle style;
  style.ensure_ascii = b.flag(0, false);
  style.sort_keys = b.flag(3, false);
  if (b.has(1) && !b[1].is_none()) {
    style.indented = true;
    style.item_separator.assign(1, ',');
    if (b[1].is_string()) {
      style.indent = b[1].string();
    } else {
      const std::int64_t width = b.integer(1, 0);
      if (width > 100) throw TemplateError("The indent of tojson is at most 100.");
      style.indent.assign(static_cast<std::size_t>(std::max<std::int64_t>(width, 0)), ' ');
    }
  }
  if (b.has(2) && !b[2].is_none()) {
    const List separators = iterate(b[2]);
    if (separators.size() != 2) throw TemplateError("The separators of tojson are two strings.");
    style.item_separator = need_string(separators[0], "tojson");
    style.key_separator = need_string(separators[1], "tojson");
  }
  return to_json(v, style);
}

// The positional arguments become the tuple behind '%'.
Value format(Interpreter&, V v, B b) {
  return format_percent(to_text(v), Value::tuple(b.raw().positional));
}

}  // namespace

const std::vector<Builtin>& string_filters() {
  static const std::vector<Builtin> table = {
      {"trim", {"chars"}, trim},
      {"upper", {}, upper},
      {"lower", {}, lower},
      {"capitalize", {}, capitalize},
      {"title", {}, title},
      {"replace", {"old", "new", "count"}, replace},
      {"string", {}, string},
      {"safe", {}, string},
      {"escape", {}, escape},
      {"e", {}, escape},
      {"indent", {"width", "first", "blank"}, indent},
      {"wordcount", {}, wordcount},
      {"int", {"default", "base"}, to_integer},
      {"float", {"default"}, to_real},
      {"abs", {}, absolute},
      {"round", {"precision", "method"}, round},
      {"tojson", {"ensure_ascii", "indent", "separators", "sort_keys"}, tojson},
      {"format", {"*"}, format},
  };
  return table;
}

}  // namespace nibble::jinja
