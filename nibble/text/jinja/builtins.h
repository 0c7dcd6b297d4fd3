#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/text/jinja/value.h"

namespace nibble::jinja {

class Interpreter;

// The arguments of a call put to the names of its parameters.
class Bound {
 public:
  // Throws TemplateError for an unknown name or too many arguments. Without names any argument is taken (`raw`).
  Bound(const Arguments& arguments, std::string_view function, const std::vector<std::string_view>& names);

  bool has(std::size_t i) const { return i < values_.size() && values_[i] != nullptr; }
  const Value& operator[](std::size_t i) const;
  std::int64_t integer(std::size_t i, std::int64_t fallback) const;
  bool flag(std::size_t i, bool fallback) const { return has(i) ? values_[i]->truthy() : fallback; }
  std::string text(std::size_t i, std::string_view fallback) const;
  const Arguments& raw() const { return arguments_; }

 private:
  const Arguments& arguments_;
  std::string_view function_;
  std::vector<const Value*> values_;
};

// A filter, a test (which gives a boolean) or a method: the value it works on and its arguments.
struct Builtin {
  std::string_view name;
  std::vector<std::string_view> parameters;
  Value (*apply)(Interpreter& interpreter, const Value& operand, const Bound& arguments);
};

const std::vector<Builtin>& string_filters();
const std::vector<Builtin>& list_filters();
const std::vector<Builtin>& selection_filters();
const std::vector<Builtin>& tests();
const std::vector<Builtin>& string_methods();
const std::vector<Builtin>& dict_methods();
const std::vector<Builtin>& list_methods();

// By name; null where there is none.
const Builtin* find_filter(std::string_view name);
const Builtin* find_test(std::string_view name);
const Builtin* find_method(const Value& object, std::string_view name);
// range, dict, namespace, raise_exception, strftime_now...; undefined where there is none.
Value find_global(std::string_view name);

// Follows a path such as "function.name" as the filters' `attribute` does; `fallback` stands in for what is undefined.
Value follow(const Value& item, const Value& path, const Value* fallback = nullptr);
// The attribute or else item that `object.name` means; undefined where there is none.
Value get_attribute(const Value& object, const std::string& name);
// object[index]
Value get_item(const Value& object, const Value& index);
// Whether the loop has an item at `index`, for which its filter runs over as many items as it takes.
bool loop_reaches(Loop& loop, std::size_t index);
// Sizes as Python's len() does.
std::size_t length_of(const Value& value);

}  // namespace nibble::jinja
