#include <fmt/format.h>

#include <algorithm>
#include <charconv>

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

Value strip_side(V v, B b, Side side) {
  if (!b.has(0) || b[0].is_none()) return unicode::strip(v.string(), side);
  return unicode::strip(v.string(), side, need_string(b[0], "strip"));
}

Value strip(Interpreter&, V v, B b) { return strip_side(v, b, Side::both); }
Value lstrip(Interpreter&, V v, B b) { return strip_side(v, b, Side::left); }
Value rstrip(Interpreter&, V v, B b) { return strip_side(v, b, Side::right); }

Value pieces(std::vector<std::string> texts) {
  List items;
  for (std::string& text : texts) items.emplace_back(std::move(text));
  return Value::list(std::move(items));
}

Value split(Interpreter&, V v, B b) {
  const std::int64_t limit = b.integer(1, -1);
  if (!b.has(0) || b[0].is_none()) return pieces(split_blanks(v.string(), limit, false));
  return pieces(split_at(v.string(), need_string(b[0], "split"), limit, false));
}

Value rsplit(Interpreter&, V v, B b) {
  const std::int64_t limit = b.integer(1, -1);
  if (!b.has(0) || b[0].is_none()) return pieces(split_blanks(v.string(), limit, true));
  return pieces(split_at(v.string(), need_string(b[0], "rsplit"), limit, true));
}

Value splitlines(Interpreter&, V v, B b) { return pieces(split_lines(v.string(), b.flag(0, false))); }

Value partition_around(const std::string& text, std::size_t at, const std::string& mark, bool from_right) {
  if (at == std::string::npos) {
    return from_right ? Value::tuple({"", "", text}) : Value::tuple({text, "", ""});
  }
  return Value::tuple({text.substr(0, at), mark, text.substr(at + mark.size())});
}

Value partition(Interpreter&, V v, B b) {
  const std::string& mark = need_string(b[0], "partition");
  return partition_around(v.string(), v.string().find(mark), mark, false);
}

Value rpartition(Interpreter&, V v, B b) {
  const std::string& mark = need_string(b[0], "rpartition");
  return partition_around(v.string(), v.string().rfind(mark), mark, true);
}

// startswith and endswith take one text or a tuple of them.
template <typename Holds>
Value any_affix(V wanted, Holds&& holds) {
  if (!wanted.is(Kind::tuple)) return holds(need_string(wanted, "startswith or endswith"));
  return std::any_of(wanted.items().begin(), wanted.items().end(),
                     [&](V affix) { return holds(need_string(affix, "startswith or endswith")); });
}

Value starts_with(Interpreter&, V v, B b) {
  return any_affix(b[0], [&](const std::string& affix) { return v.string().starts_with(affix); });
}

Value ends_with(Interpreter&, V v, B b) {
  return any_affix(b[0], [&](const std::string& affix) { return v.string().ends_with(affix); });
}

Value replace(Interpreter&, V v, B b) {
  return replaced(v.string(), need_string(b[0], "replace"), need_string(b[1], "replace"), b.integer(2, -1));
}

Value remove_prefix(Interpreter&, V v, B b) {
  const std::string& prefix = need_string(b[0], "removeprefix");
  return v.string().starts_with(prefix) ? Value(v.string().substr(prefix.size())) : v;
}

Value remove_suffix(Interpreter&, V v, B b) {
  const std::string& suffix = need_string(b[0], "removesuffix");
  return v.string().ends_with(suffix) ? Value(v.string().substr(0, v.string().size() - suffix.size())) : v;
}

Value position(V v, B b, bool from_right) {
  const std::string& text = v.string();
  const Value part = slice(v, b.has(1) ? b[1] : Value::none(), b.has(2) ? b[2] : Value::none(), Value::none());
  const std::string& wanted = need_string(b[0], "find");
  const std::size_t at = from_right ? part.string().rfind(wanted) : part.string().find(wanted);
  if (at == std::string::npos) return -1;
  std::int64_t start = b.integer(1, 0);
  if (start < 0) start = std::max<std::int64_t>(start + static_cast<std::int64_t>(unicode::length(text)), 0);
  return start + static_cast<std::int64_t>(unicode::length(std::string_view(part.string()).substr(0, at)));
}

Value find(Interpreter&, V v, B b) { return position(v, b, false); }
Value rfind(Interpreter&, V v, B b) { return position(v, b, true); }

Value index(Interpreter&, V v, B b) {
  Value at = position(v, b, false);
  if (at.integral() < 0) throw TemplateError("index() does not find the text.");
  return at;
}

Value count(Interpreter&, V v, B b) {
  const std::string& wanted = need_string(b[0], "count");
  if (wanted.empty()) return static_cast<std::int64_t>(unicode::length(v.string())) + 1;
  std::int64_t found = 0;
  for (std::size_t at = v.string().find(wanted); at != std::string::npos;
       at = v.string().find(wanted, at + wanted.size())) {
    ++found;
  }
  return found;
}

Value join(Interpreter&, V v, B b) {
  std::string result;
  bool first = true;
  for (const Value& item : iterate(b[0])) {
    if (!first) result += v.string();
    first = false;
    result += need_string(item, "join");
    if (result.size() > max_text) throw TemplateError("join() makes too long a string.");
  }
  return result;
}

Value upper(Interpreter&, V v, B) { return unicode::upper(v.string()); }
Value lower(Interpreter&, V v, B) { return unicode::lower(v.string()); }
Value title(Interpreter&, V v, B) { return unicode::title(v.string()); }
Value capitalize(Interpreter&, V v, B) { return unicode::capitalize(v.string()); }
Value format(Interpreter&, V v, B b) { return format_braces(v.string(), b.raw()); }

template <typename Accepts>
Value all_are(V v, Accepts&& accepts) {
  const std::string& text = v.string();
  for (std::size_t at = 0; at < text.size();) {
    if (!accepts(unicode::decode(text, at))) return false;
  }
  return !text.empty();
}

bool is_ascii_digit(char32_t code) { return code >= '0' && code <= '9'; }

Value is_digits(Interpreter&, V v, B) { return all_are(v, is_ascii_digit); }
Value is_alpha(Interpreter&, V v, B) { return all_are(v, unicode::is_alphabetic); }
Value is_alnum(Interpreter&, V v, B) {
  return all_are(v, [](char32_t code) { return is_ascii_digit(code) || unicode::is_alphabetic(code); });
}
Value is_space(Interpreter&, V v, B) { return all_are(v, unicode::is_space); }
Value call_is_upper(Interpreter& in, V v, B) { return find_test("upper")->apply(in, v, Bound({}, "isupper", {})); }
Value call_is_lower(Interpreter& in, V v, B) { return find_test("lower")->apply(in, v, Bound({}, "islower", {})); }

Value keys(Interpreter&, V v, B) { return Value::list(iterate(v)); }

Value values(Interpreter&, V v, B) {
  List result;
  for (const auto& entry : v.dict().entries()) result.push_back(entry.second);
  return Value::list(std::move(result));
}

Value items(Interpreter&, V v, B) {
  List result;
  for (const auto& [key, value] : v.dict().entries()) result.push_back(Value::tuple({key, value}));
  return Value::list(std::move(result));
}

Value get(Interpreter&, V v, B b) {
  if (const Value* found = v.dict().find(b[0])) return *found;
  return b.has(1) ? b[1] : Value::none();
}

Value copy(Interpreter&, V v, B) { return v; }

Value list_index(Interpreter&, V v, B b) {
  const auto found = std::find_if(v.items().begin(), v.items().end(), [&](V item) { return equal(item, b[0]); });
  if (found == v.items().end()) throw TemplateError("index() does not find the item.");
  return static_cast<std::int64_t>(found - v.items().begin());
}

Value list_count(Interpreter&, V v, B b) {
  return static_cast<std::int64_t>(
      std::count_if(v.items().begin(), v.items().end(), [&](V item) { return equal(item, b[0]); }));
}

}  // namespace

const std::vector<Builtin>& string_methods() {
  static const std::vector<Builtin> table = {
      {"strip", {"chars"}, strip},
      {"lstrip", {"chars"}, lstrip},
      {"rstrip", {"chars"}, rstrip},
      {"split", {"sep", "maxsplit"}, split},
      {"rsplit", {"sep", "maxsplit"}, rsplit},
      {"splitlines", {"keepends"}, splitlines},
      {"partition", {"sep"}, partition},
      {"rpartition", {"sep"}, rpartition},
      {"startswith", {"prefix"}, starts_with},
      {"endswith", {"suffix"}, ends_with},
      {"replace", {"old", "new", "count"}, replace},
      {"removeprefix", {"prefix"}, remove_prefix},
      {"removesuffix", {"suffix"}, remove_suffix},
      {"find", {"sub", "start", "end"}, find},
      {"rfind", {"sub", "start", "end"}, rfind},
      {"index", {"sub", "start", "end"}, index},
      {"count", {"sub"}, count},
      {"join", {"iterable"}, join},
      {"upper", {}, upper},
      {"lower", {}, lower},
      {"title", {}, title},
      {"capitalize", {}, capitalize},
      {"format", {"*"}, format},
      {"isdigit", {}, is_digits},
      {"isnumeric", {}, is_digits},
      {"isdecimal", {}, is_digits},
      {"isalpha", {}, is_alpha},
      {"isalnum", {}, is_alnum},
      {"isspace", {}, is_space},
      {"isupper", {}, call_is_upper},
      {"islower", {}, call_is_lower},
  };
  return table;
}

const std::vector<Builtin>& dict_methods() {
  static const std::vector<Builtin> table = {
      {"keys", {}, keys}, {"values", {}, values}, {"items", {}, items}, {"get", {"key", "default"}, get},
      {"copy", {}, copy},
  };
  return table;
}

const std::vector<Builtin>& list_methods() {
  static const std::vector<Builtin> table = {
      {"index", {"value"}, list_index}, {"count", {"value"}, list_count}, {"copy", {}, copy}};
  return table;
}

}  // namespace nibble::jinja
