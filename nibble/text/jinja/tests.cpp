#include <fmt/format.h>

#include "nibble/text/jinja/builtins.h"
#include "nibble/text/jinja/operators.h"
#include "nibble/text/jinja/unicode.h"

namespace nibble::jinja {
namespace {

using V = const Value&;
using B = const Bound&;

std::int64_t integer_of(V value) {
  if (value.is_undefined()) throw TemplateError(value.undefined_message());
  if (!value.is_integral()) {
    throw TemplateError(fmt::format("This test needs an integer, not a {}.", name_of(value.kind())));
  }
  return value.integral();
}

bool is_iterable(V value) {
  return value.is_undefined() || value.is_string() || value.is_sequence() || value.is_dict() || value.is(Kind::loop);
}

// As str.isupper and str.islower: some letter has a case and none has the other.
bool has_only(V value, bool (*wanted)(char32_t), bool (*other)(char32_t)) {
  const std::string text = to_text(value);
  bool found = false;
  for (std::size_t at = 0; at < text.size();) {
    const char32_t code = unicode::decode(text, at);
    if (other(code)) return false;
    found = found || wanted(code);
  }
  return found;
}

bool same(V a, V b) {
  if (a.kind() != b.kind()) return false;
  if (a.is_sequence()) return &a.items() == &b.items();
  if (a.is_dict()) return &a.dict() == &b.dict();
  return equal(a, b);
}

Value is_defined(Interpreter&, V v, B) { return !v.is_undefined(); }
Value is_undefined(Interpreter&, V v, B) { return v.is_undefined(); }
Value is_none(Interpreter&, V v, B) { return v.is_none(); }
Value is_string(Interpreter&, V v, B) { return v.is_string(); }
Value is_mapping(Interpreter&, V v, B) { return v.is_dict(); }
Value is_iterable_test(Interpreter&, V v, B) { return is_iterable(v); }
// jinja2 asks for len() and indexing, which its undefined value has too.
Value is_sequence(Interpreter&, V v, B) { return is_iterable(v) && !v.is(Kind::loop); }
Value is_number(Interpreter&, V v, B) { return v.is_number(); }
Value is_integer(Interpreter&, V v, B) { return v.is(Kind::integer); }
Value is_float(Interpreter&, V v, B) { return v.is(Kind::real); }
Value is_boolean(Interpreter&, V v, B) { return v.is(Kind::boolean); }
Value is_true(Interpreter&, V v, B) { return v.is(Kind::boolean) && v.boolean(); }
Value is_false(Interpreter&, V v, B) { return v.is(Kind::boolean) && !v.boolean(); }
Value is_callable(Interpreter&, V v, B) { return v.is(Kind::callable); }
Value is_sameas(Interpreter&, V v, B b) { return same(v, b[0]); }
Value is_upper(Interpreter&, V v, B) { return has_only(v, unicode::is_upper, unicode::is_lower); }
Value is_lower(Interpreter&, V v, B) { return has_only(v, unicode::is_lower, unicode::is_upper); }
Value is_odd(Interpreter&, V v, B) { return integer_of(v) % 2 != 0; }
Value is_even(Interpreter&, V v, B) { return integer_of(v) % 2 == 0; }
Value is_divisible(Interpreter&, V v, B b) {
  return equal(binary(BinaryOp::modulo, Value(integer_of(v)), Value(integer_of(b[0]))), Value(0));
}
Value is_in(Interpreter&, V v, B b) { return contains(b[0], v); }
Value is_equal(Interpreter&, V v, B b) { return equal(v, b[0]); }
Value is_not_equal(Interpreter&, V v, B b) { return !equal(v, b[0]); }
Value is_less(Interpreter&, V v, B b) { return compare(v, b[0]) < 0; }
Value is_less_equal(Interpreter&, V v, B b) { return compare(v, b[0]) <= 0; }
Value is_greater(Interpreter&, V v, B b) { return compare(v, b[0]) > 0; }
Value is_greater_equal(Interpreter&, V v, B b) { return compare(v, b[0]) >= 0; }
Value is_filter(Interpreter&, V v, B) { return v.is_string() && find_filter(v.string()) != nullptr; }
Value is_test(Interpreter&, V v, B) { return v.is_string() && find_test(v.string()) != nullptr; }
Value is_escaped(Interpreter&, V, B) { return false; }

}  // namespace

const std::vector<Builtin>& tests() {
  static const std::vector<Builtin> table = {
      {"defined", {}, is_defined},
      {"undefined", {}, is_undefined},
      {"none", {}, is_none},
      {"string", {}, is_string},
      {"mapping", {}, is_mapping},
      {"iterable", {}, is_iterable_test},
      {"sequence", {}, is_sequence},
      {"number", {}, is_number},
      {"integer", {}, is_integer},
      {"float", {}, is_float},
      {"boolean", {}, is_boolean},
      {"true", {}, is_true},
      {"false", {}, is_false},
      {"callable", {}, is_callable},
      {"sameas", {"other"}, is_sameas},
      {"upper", {}, is_upper},
      {"lower", {}, is_lower},
      {"odd", {}, is_odd},
      {"even", {}, is_even},
      {"divisibleby", {"num"}, is_divisible},
      {"in", {"seq"}, is_in},
      {"eq", {"other"}, is_equal},
      {"==", {"other"}, is_equal},
      {"equalto", {"other"}, is_equal},
      {"ne", {"other"}, is_not_equal},
      {"!=", {"other"}, is_not_equal},
      {"lt", {"other"}, is_less},
      {"<", {"other"}, is_less},
      {"lessthan", {"other"}, is_less},
      {"le", {"other"}, is_less_equal},
      {"<=", {"other"}, is_less_equal},
      {"gt", {"other"}, is_greater},
      {">", {"other"}, is_greater},
      {"greaterthan", {"other"}, is_greater},
      {"ge", {"other"}, is_greater_equal},
      {">=", {"other"}, is_greater_equal},
      {"filter", {}, is_filter},
      {"test", {}, is_test},
      {"escaped", {}, is_escaped},
  };
  return table;
}

}  // namespace nibble::jinja
