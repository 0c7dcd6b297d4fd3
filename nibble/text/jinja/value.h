#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace nibble::jinja {

class Value;
class Dict;
class Interpreter;
struct Sequence;
struct Callable;
struct Namespace;
struct Loop;
using List = std::vector<Value>;

// What an operation on values throws; the interpreter adds the line of the template.
class TemplateError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The order is that of Value's variant.
enum class Kind { undefined, none, boolean, integer, real, string, list, tuple, dict, namespace_, callable, loop };

std::string_view name_of(Kind kind);

// A value of the template language, with Python's meaning. Lists and dicts never change once made (the templates run in
// an immutable sandbox), so copies share them.
class Value {
 public:
  Value() = default;  // undefined
  Value(bool value) : data_(value) {}
  Value(int value) : data_(std::int64_t{value}) {}
  Value(std::int64_t value) : data_(value) {}
  Value(double value) : data_(value) {}
  Value(std::string value) : data_(std::make_shared<const std::string>(std::move(value))) {}
  Value(std::string_view value) : Value(std::string(value)) {}
  Value(const char* value) : Value(std::string(value)) {}
  Value(std::shared_ptr<Namespace> value) : data_(std::move(value)) {}
  Value(std::shared_ptr<const Callable> value) : data_(std::move(value)) {}
  Value(std::shared_ptr<Loop> value) : data_(std::move(value)) {}

  static Value none();
  // `what` says in errors what is undefined: "'tools'".
  static Value undefined(std::string what);
  // These throw TemplateError where the nesting passes 100 levels or an item is a namespace or a loop.
  static Value list(List items);
  static Value tuple(List items);
  static Value dict(Dict items);

  Kind kind() const { return static_cast<Kind>(data_.index()); }
  bool is(Kind kind_) const { return kind() == kind_; }
  bool is_undefined() const { return is(Kind::undefined); }
  bool is_none() const { return is(Kind::none); }
  bool is_string() const { return is(Kind::string); }
  bool is_sequence() const { return is(Kind::list) || is(Kind::tuple); }
  bool is_dict() const { return is(Kind::dict); }
  // Booleans count as the numbers 0 and 1.
  bool is_integral() const { return is(Kind::boolean) || is(Kind::integer); }
  bool is_number() const { return is_integral() || is(Kind::real); }

  const std::string& string() const { return *std::get<Text>(data_); }
  bool boolean() const { return std::get<bool>(data_); }
  std::int64_t integral() const;
  double number() const;
  const List& items() const;  // of a list or a tuple
  const Dict& dict() const { return *std::get<std::shared_ptr<const Dict>>(data_); }
  Namespace& name_space() const { return *std::get<std::shared_ptr<Namespace>>(data_); }
  const Callable& callable() const { return *std::get<std::shared_ptr<const Callable>>(data_); }
  Loop& loop() const { return *std::get<std::shared_ptr<Loop>>(data_); }
  // "'tools' is undefined"
  std::string undefined_message() const;

  bool truthy() const;
  int depth() const;

 private:
  using Text = std::shared_ptr<const std::string>;
  struct Missing {
    Text what;
  };
  struct None {};
  struct Tuple {
    std::shared_ptr<const Sequence> data;
  };
  std::variant<Missing, None, bool, std::int64_t, double, Text, std::shared_ptr<const Sequence>, Tuple,
               std::shared_ptr<const Dict>, std::shared_ptr<Namespace>, std::shared_ptr<const Callable>,
               std::shared_ptr<Loop>>
      data_;
};

struct Sequence {
  List items;
  int depth = 1;
};

// Keeps the order of insertion, as Python's.
class Dict {
 public:
  void set(Value key, Value value);
  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;
  const std::vector<std::pair<Value, Value>>& entries() const { return entries_; }
  std::size_t size() const { return entries_.size(); }
  int depth() const { return depth_; }

 private:
  std::size_t position(const Value& key) const;  // the size where it is absent

  std::vector<std::pair<Value, Value>> entries_;
  std::unordered_map<std::string, std::size_t> index_;  // of the string keys
  int depth_ = 1;
};

struct Namespace {
  Dict attributes;
};

// The arguments of one call.
struct Arguments {
  List positional;
  std::vector<std::pair<std::string, Value>> named;
};

struct Callable {
  std::string name;
  std::function<Value(Interpreter&, const Arguments&)> call;
  int depth = 1;
};

// What `loop` is inside a for.
struct Loop : std::enable_shared_from_this<Loop> {
  List items;
  // Appends the next item that passes the loop's filter; false at the end. Filters run only when an item is asked for.
  std::function<bool()> fetch;
  std::size_t index = 0;
  std::int64_t depth = 0;
  Value last_changed;
  std::shared_ptr<const Callable> recurse;  // of `for ... recursive`
};

bool equal(const Value& a, const Value& b);
// Negative, zero or positive; throws where Python has no order between the two.
int compare(const Value& a, const Value& b);
// What Python's str() and repr() give.
std::string to_text(const Value& value);
std::string to_repr(const Value& value);
// What iterating over it gives: items, code points, keys; throws where Python would.
List iterate(const Value& value);

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::string indent;  // of one level; used where `indented`
  bool indented = false;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
// As Python's json.dumps writes it.
std::string to_json(const Value& value, const JsonStyle& style);
Value from_json(const nlohmann::ordered_json& json);

}  // namespace nibble::jinja
