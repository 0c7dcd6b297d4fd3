#include <fmt/format.h>

#include <algorithm>

#include "nibble/text/jinja/builtins.h"
#include "nibble/text/jinja/interpreter.h"
#include "nibble/text/jinja/operators.h"
#include "nibble/text/jinja/unicode.h"

namespace nibble::jinja {
namespace {

using V = const Value&;
using B = const Bound&;

Value length(Interpreter&, V v, B) { return static_cast<std::int64_t>(length_of(v)); }

Value fallback(Interpreter&, V v, B b) {
  const bool use = v.is_undefined() || (b.flag(1, false) && !v.truthy());
  if (!use) return v;
  return b.has(0) ? b[0] : Value("");
}

Value join(Interpreter&, V v, B b) {
  const std::string separator = b.text(0, "");
  std::string result;
  bool begin = true;
  for (const Value& item : iterate(v)) {
    if (!begin) result += separator;
    begin = false;
    result += to_text(b.has(1) && !b[1].is_none() ? follow(item, b[1]) : item);
    if (result.size() > max_text) throw TemplateError("join makes too long a string.");
  }
  return result;
}

Value list(Interpreter&, V v, B) { return Value::list(iterate(v)); }

Value first(Interpreter&, V v, B) {
  const List items = iterate(v);
  return items.empty() ? Value::undefined("The first item of an empty sequence") : items.front();
}

Value last(Interpreter&, V v, B) {
  const List items = iterate(v);
  return items.empty() ? Value::undefined("The last item of an empty sequence") : items.back();
}

Value reverse(Interpreter&, V v, B) {
  List items = iterate(v);
  std::reverse(items.begin(), items.end());
  if (!v.is_string()) return Value::list(std::move(items));
  std::string text;
  for (V item : items) text += item.string();
  return text;
}

// The key that sort, unique, min and max compare by: attribute first, then case folded away.
Value sort_key(V item, const Value* attribute, bool case_sensitive) {
  const Value key = attribute != nullptr && !attribute->is_none() ? follow(item, *attribute) : item;
  return key.is_string() && !case_sensitive ? Value(unicode::lower(key.string())) : key;
}

using Keyed = std::vector<std::pair<Value, Value>>;

Keyed keyed(V v, const Value* attribute, bool case_sensitive) {
  Keyed result;
  for (Value& item : iterate(v)) {
    Value key = sort_key(item, attribute, case_sensitive);
    result.emplace_back(std::move(key), std::move(item));
  }
  return result;
}

void sort_by_key(Keyed& items, bool reversed) {
  // Python's reverse keeps equal items in their order, as does a stable sort by "greater".
  std::stable_sort(items.begin(), items.end(), [&](const auto& a, const auto& b) {
    return reversed ? compare(a.first, b.first) > 0 : compare(a.first, b.first) < 0;
  });
}

Value values_of(Keyed items) {
  List result;
  for (auto& item : items) result.push_back(std::move(item.second));
  return Value::list(std::move(result));
}

Value sort(Interpreter&, V v, B b) {
  Keyed items = keyed(v, b.has(2) ? &b[2] : nullptr, b.flag(1, false));
  sort_by_key(items, b.flag(0, false));
  return values_of(std::move(items));
}

Value unique(Interpreter&, V v, B b) {
  List seen;
  List result;
  for (auto& [key, item] : keyed(v, b.has(1) ? &b[1] : nullptr, b.flag(0, false))) {
    if (std::any_of(seen.begin(), seen.end(), [&key = key](V have) { return equal(have, key); })) continue;
    seen.push_back(std::move(key));
    result.push_back(std::move(item));
  }
  return Value::list(std::move(result));
}

Value extreme(V v, B b, bool largest) {
  const Keyed items = keyed(v, b.has(1) ? &b[1] : nullptr, b.flag(0, false));
  if (items.empty()) return Value::undefined("The smallest or largest item of an empty sequence");
  const auto* best = &items.front();
  for (const auto& item : items) {
    const int order = compare(item.first, best->first);
    if (largest ? order > 0 : order < 0) best = &item;
  }
  return best->second;
}

Value minimum(Interpreter&, V v, B b) { return extreme(v, b, false); }
Value maximum(Interpreter&, V v, B b) { return extreme(v, b, true); }

Value sum(Interpreter&, V v, B b) {
  Value total = b.has(1) ? b[1] : Value(0);
  for (V item : iterate(v)) {
    total = binary(BinaryOp::add, total, b.has(0) && !b[0].is_none() ? follow(item, b[0]) : item);
  }
  return total;
}

Value items(Interpreter&, V v, B) {
  if (v.is_undefined()) return Value::list({});
  if (!v.is_dict()) throw TemplateError(fmt::format("items needs a dict, not a {}.", name_of(v.kind())));
  List result;
  for (const auto& [key, value] : v.dict().entries()) result.push_back(Value::tuple({key, value}));
  return Value::list(std::move(result));
}

Value dictsort(Interpreter&, V v, B b) {
  const std::string by = b.text(1, "key");
  if (by != "key" && by != "value") throw TemplateError("dictsort sorts by 'key' or by 'value'.");
  if (!v.is_dict()) throw TemplateError(fmt::format("dictsort needs a dict, not a {}.", name_of(v.kind())));
  Keyed pairs;
  for (const auto& [key, value] : v.dict().entries()) {
    pairs.emplace_back(sort_key(by == "key" ? key : value, nullptr, b.flag(0, false)), Value::tuple({key, value}));
  }
  sort_by_key(pairs, b.flag(2, false));
  return values_of(std::move(pairs));
}

Value attribute(Interpreter&, V v, B b) { return get_attribute(v, to_text(b[0])); }

Value batch(Interpreter&, V v, B b) {
  const std::int64_t size = b[0].is_integral() ? b.integer(0, 1) : 0;
  if (size < 1) throw TemplateError("batch needs a size of at least 1.");
  List result;
  List group;
  for (Value& item : iterate(v)) {
    group.push_back(std::move(item));
    if (static_cast<std::int64_t>(group.size()) == size) result.push_back(Value::list(std::exchange(group, {})));
  }
  if (group.empty()) return Value::list(std::move(result));
  if (b.has(1) && !b[1].is_none()) {
    if (size > 100000) throw TemplateError("batch fills at most 100000 items.");
    group.resize(static_cast<std::size_t>(size), b[1]);
  }
  result.push_back(Value::list(std::move(group)));
  return Value::list(std::move(result));
}

}  // namespace

const std::vector<Builtin>& list_filters() {
  static const std::vector<Builtin> table = {
      {"length", {}, length},
      {"count", {}, length},
      {"default", {"default_value", "boolean"}, fallback},
      {"d", {"default_value", "boolean"}, fallback},
      {"join", {"d", "attribute"}, join},
      {"list", {}, list},
      {"first", {}, first},
      {"last", {}, last},
      {"reverse", {}, reverse},
      {"sort", {"reverse", "case_sensitive", "attribute"}, sort},
      {"unique", {"case_sensitive", "attribute"}, unique},
      {"min", {"case_sensitive", "attribute"}, minimum},
      {"max", {"case_sensitive", "attribute"}, maximum},
      {"sum", {"attribute", "start"}, sum},
      {"items", {}, items},
      {"dictsort", {"case_sensitive", "by", "reverse"}, dictsort},
      {"attr", {"name"}, attribute},
      {"batch", {"linecount", "fill_with"}, batch},
  };
  return table;
}

}  // namespace nibble::jinja
