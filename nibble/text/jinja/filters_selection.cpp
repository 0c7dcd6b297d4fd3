#include <fmt/format.h>

#include <algorithm>

#include "nibble/text/jinja/builtins.h"
#include "nibble/text/jinja/interpreter.h"

namespace nibble::jinja {
namespace {

using V = const Value&;
using B = const Bound&;

// The arguments behind the first `skip` positional ones.
Arguments rest_of(const Arguments& arguments, std::size_t skip) {
  Arguments rest = arguments;
  rest.positional.erase(rest.positional.begin(),
                        rest.positional.begin() + static_cast<std::ptrdiff_t>(std::min(skip, rest.positional.size())));
  return rest;
}

const Value* named(const Arguments& arguments, std::string_view name) {
  for (const auto& [have, value] : arguments.named) {
    if (have == name) return &value;
  }
  return nullptr;
}

// map(attribute="a.b", default=...) or map("filter", arguments...)
Value map(Interpreter& interpreter, V v, B b) {
  const Arguments& arguments = b.raw();
  const Value* attribute = named(arguments, "attribute");
  List result;
  if (arguments.positional.empty() && attribute == nullptr) {
    throw TemplateError("map needs an attribute or the name of a filter.");
  }
  const Value* fallback = named(arguments, "default");
  const Arguments rest = rest_of(arguments, 1);
  for (V item : iterate(v)) {
    if (!arguments.positional.empty()) {
      result.push_back(interpreter.apply_filter(to_text(arguments.positional[0]), item, rest));
      continue;
    }
    result.push_back(follow(item, *attribute, fallback));
  }
  return Value::list(std::move(result));
}

// The items whose attribute (or which themselves) pass the named test, or are true without one.
Value choose(Interpreter& interpreter, V v, B b, bool wanted, bool by_attribute) {
  const Arguments& arguments = b.raw();
  if (by_attribute && arguments.positional.empty()) {
    throw TemplateError("selectattr and rejectattr need an attribute.");
  }
  const std::size_t at = by_attribute ? 1 : 0;
  const Arguments rest = rest_of(arguments, at + 1);
  List result;
  for (Value& item : iterate(v)) {
    const Value subject = by_attribute ? follow(item, arguments.positional[0]) : item;
    const bool passes = arguments.positional.size() > at
                            ? interpreter.apply_test(to_text(arguments.positional[at]), subject, rest)
                            : subject.truthy();
    if (passes == wanted) result.push_back(std::move(item));
  }
  return Value::list(std::move(result));
}

Value select(Interpreter& in, V v, B b) { return choose(in, v, b, true, false); }
Value reject(Interpreter& in, V v, B b) { return choose(in, v, b, false, false); }
Value selectattr(Interpreter& in, V v, B b) { return choose(in, v, b, true, true); }
Value rejectattr(Interpreter& in, V v, B b) { return choose(in, v, b, false, true); }

// Pairs of a key and its items, sorted by key.
Value groupby(Interpreter& interpreter, V v, B b) {
  const Value sorted =
      interpreter.apply_filter("sort", v, Arguments{.positional = {}, .named = {{"attribute", b[0]}}});
  List result;
  List group;
  Value key;
  const auto close = [&] {
    if (!group.empty()) result.push_back(Value::tuple({key, Value::list(std::exchange(group, {}))}));
  };
  for (V item : sorted.items()) {
    const Value own = follow(item, b[0]);
    if (!group.empty() && !equal(own, key)) close();
    key = own;
    group.push_back(item);
  }
  close();
  return Value::list(std::move(result));
}

}  // namespace

const std::vector<Builtin>& selection_filters() {
  static const std::vector<Builtin> table = {
      {"map", {"*"}, map},
      {"select", {"*"}, select},
      {"reject", {"*"}, reject},
      {"selectattr", {"*"}, selectattr},
      {"rejectattr", {"*"}, rejectattr},
      {"groupby", {"attribute"}, groupby},
  };
  return table;
}

}  // namespace nibble::jinja
