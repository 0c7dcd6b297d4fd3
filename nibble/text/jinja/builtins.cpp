#include "nibble/text/jinja/builtins.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <unordered_map>

#include "nibble/text/jinja/operators.h"
#include "nibble/text/jinja/unicode.h"

namespace nibble::jinja {
namespace {

using Table = std::unordered_map<std::string_view, const Builtin*>;

Table table_of(std::initializer_list<const std::vector<Builtin>*> groups) {
  Table table;
  for (const auto* group : groups) {
    for (const Builtin& builtin : *group) table.emplace(builtin.name, &builtin);
  }
  return table;
}

const Builtin* find_in(const Table& table, std::string_view name) {
  const auto found = table.find(name);
  return found == table.end() ? nullptr : found->second;
}

Value loop_attribute(const Value& object, const std::string& name) {
  Loop& loop = object.loop();
  if (name == "last" || name == "nextitem") loop_reaches(loop, loop.index + 1);
  if (name == "length" || name == "revindex" || name == "revindex0") loop_reaches(loop, SIZE_MAX);
  const auto index = static_cast<std::int64_t>(loop.index);
  const auto length = static_cast<std::int64_t>(loop.items.size());
  if (name == "index") return index + 1;
  if (name == "index0") return index;
  if (name == "revindex") return length - index;
  if (name == "revindex0") return length - index - 1;
  if (name == "first") return index == 0;
  if (name == "last") return index + 1 == length;
  if (name == "length") return length;
  if (name == "depth") return loop.depth + 1;
  if (name == "depth0") return loop.depth;
  if (name == "previtem" && index > 0) return loop.items[loop.index - 1];
  if (name == "nextitem" && index + 1 < length) return loop.items[loop.index + 1];
  return Value::undefined(fmt::format("'loop.{}'", name));
}

// loop.cycle and loop.changed need the loop itself; they hold it weakly because it may come to hold them.
Value loop_method(const Value& object, const std::string& name);

Value method_value(const Value& object, const Builtin& method) {
  return std::make_shared<const Callable>(
      Callable{.name = std::string(method.name),
               .call = [object, &method](Interpreter& interpreter, const Arguments& arguments) {
                 return method.apply(interpreter, object, Bound(arguments, method.name, method.parameters));
               },
               .depth = object.depth() + 1});
}

}  // namespace

Bound::Bound(const Arguments& arguments, std::string_view function, const std::vector<std::string_view>& names)
    : arguments_(arguments), function_(function), values_(names.size(), nullptr) {
  if (!names.empty() && names.front() == "*") return;
  if (arguments.positional.size() > names.size()) {
    throw TemplateError(fmt::format("'{}' takes at most {} arguments, {} were given.", function, names.size(),
                                    arguments.positional.size()));
  }
  for (std::size_t i = 0; i < arguments.positional.size(); ++i) values_[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.named) {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) throw TemplateError(fmt::format("'{}' has no parameter '{}'.", function, name));
    values_[static_cast<std::size_t>(found - names.begin())] = &value;
  }
}

const Value& Bound::operator[](std::size_t i) const {
  if (!has(i)) throw TemplateError(fmt::format("'{}' needs {} or more arguments.", function_, i + 1));
  return *values_[i];
}

std::int64_t Bound::integer(std::size_t i, std::int64_t fallback) const {
  if (!has(i) || values_[i]->is_none()) return fallback;
  if (!values_[i]->is_integral()) {
    throw TemplateError(fmt::format("'{}' needs an integer, not a {}.", function_, name_of(values_[i]->kind())));
  }
  return values_[i]->integral();
}

std::string Bound::text(std::size_t i, std::string_view fallback) const {
  return has(i) ? to_text(*values_[i]) : std::string(fallback);
}

bool loop_reaches(Loop& loop, std::size_t index) {
  while (loop.items.size() <= index && loop.fetch && loop.fetch()) {
  }
  return index < loop.items.size();
}

const Builtin* find_filter(std::string_view name) {
  static const Table table = table_of({&string_filters(), &list_filters(), &selection_filters()});
  return find_in(table, name);
}

const Builtin* find_test(std::string_view name) {
  static const Table table = table_of({&tests()});
  return find_in(table, name);
}

const Builtin* find_method(const Value& object, std::string_view name) {
  static const Table strings = table_of({&string_methods()});
  static const Table dicts = table_of({&dict_methods()});
  static const Table lists = table_of({&list_methods()});
  if (object.is_string()) return find_in(strings, name);
  if (object.is_dict()) return find_in(dicts, name);
  if (object.is_sequence()) return find_in(lists, name);
  return nullptr;
}

Value get_attribute(const Value& object, const std::string& name) {
  if (object.is_undefined()) throw TemplateError(object.undefined_message());
  if (object.is(Kind::loop)) return loop_method(object, name);
  if (object.is(Kind::namespace_)) {
    const Value* found = object.name_space().attributes.find(std::string_view(name));
    return found != nullptr ? *found : Value::undefined(fmt::format("The namespace's attribute '{}'", name));
  }
  if (const Builtin* method = find_method(object, name)) return method_value(object, *method);
  if (object.is_dict()) {
    if (const Value* found = object.dict().find(std::string_view(name))) return *found;
  }
  return Value::undefined(fmt::format("The attribute '{}' of a {}", name, name_of(object.kind())));
}

Value get_item(const Value& object, const Value& index) {
  if (object.is_undefined()) throw TemplateError(object.undefined_message());
  Value storage;
  if (const Value* found = find_item(object, index, storage)) return *found;
  if (index.is_string()) return get_attribute(object, index.string());
  return Value::undefined(fmt::format("The item {} of a {}", to_repr(index), name_of(object.kind())));
}

Value follow(const Value& item, const Value& path, const Value* fallback) {
  const auto step = [&](const Value& from, const Value& index) {
    Value found = get_item(from, index);
    return found.is_undefined() && fallback != nullptr ? *fallback : found;
  };
  if (!path.is_string()) return step(item, path);
  Value current = item;
  const std::string& text = path.string();
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find('.', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    std::int64_t number = 0;
    const auto read = std::from_chars(part.data(), part.data() + part.size(), number);
    const bool is_number = read.ec == std::errc() && read.ptr == part.data() + part.size() && number >= 0;
    current = step(current, is_number ? Value(number) : Value(part));
    begin = end + 1;
  }
  return current;
}

std::size_t length_of(const Value& value) {
  switch (value.kind()) {
    case Kind::undefined: return 0;
    case Kind::string: return unicode::length(value.string());
    case Kind::list:
    case Kind::tuple: return value.items().size();
    case Kind::dict: return value.dict().size();
    case Kind::loop: loop_reaches(value.loop(), SIZE_MAX); return value.loop().items.size();
    default: throw TemplateError(fmt::format("A {} has no length.", name_of(value.kind())));
  }
}

namespace {

Value loop_method(const Value& object, const std::string& name) {
  if (name != "cycle" && name != "changed") return loop_attribute(object, name);
  const std::weak_ptr<Loop> weak = object.loop().weak_from_this();
  const bool cycle = name == "cycle";
  return std::make_shared<const Callable>(
      Callable{.name = name, .call = [weak, cycle](Interpreter&, const Arguments& arguments) -> Value {
                 const auto loop = weak.lock();
                 if (!loop) throw TemplateError("A method of 'loop' is called outside of its loop.");
                 if (cycle) {
                   if (arguments.positional.empty()) throw TemplateError("loop.cycle() needs values to choose from.");
                   return arguments.positional[loop->index % arguments.positional.size()];
                 }
                 const Value now = Value::tuple(arguments.positional);
                 const bool changed = loop->last_changed.is_undefined() || !equal(loop->last_changed, now);
                 loop->last_changed = now;
                 return changed;
               }});
}

}  // namespace
}  // namespace nibble::jinja
