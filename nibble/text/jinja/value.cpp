#include "nibble/text/jinja/value.h"

#include <fmt/format.h>

#include <algorithm>

#include "nibble/text/jinja/unicode.h"

namespace nibble::jinja {
namespace {

// Deeper values than this would overflow the stack of whoever walks them.
constexpr int max_depth = 100;

int depth_with(int depth, const Value& item) {
  if (item.is(Kind::namespace_) || item.is(Kind::loop)) {
    throw TemplateError(fmt::format("A {} cannot be stored inside another value.", name_of(item.kind())));
  }
  const int result = std::max(depth, item.depth() + 1);
  if (result > max_depth) throw TemplateError(fmt::format("Values are nested deeper than {} levels.", max_depth));
  return result;
}

std::shared_ptr<const Sequence> make_sequence(List items) {
  int depth = 1;
  for (const Value& item : items) depth = depth_with(depth, item);
  return std::make_shared<const Sequence>(Sequence{.items = std::move(items), .depth = depth});
}

}  // namespace

std::string_view name_of(Kind kind) {
  switch (kind) {
    case Kind::undefined: return "undefined value";
    case Kind::none: return "none";
    case Kind::boolean: return "boolean";
    case Kind::integer: return "integer";
    case Kind::real: return "float";
    case Kind::string: return "string";
    case Kind::list: return "list";
    case Kind::tuple: return "tuple";
    case Kind::dict: return "dict";
    case Kind::namespace_: return "namespace";
    case Kind::callable: return "function";
    case Kind::loop: return "loop";
  }
  return "value";
}

Value Value::none() {
  Value value;
  value.data_ = None{};
  return value;
}

Value Value::undefined(std::string what) {
  Value value;
  value.data_ = Missing{std::make_shared<const std::string>(std::move(what))};
  return value;
}

Value Value::list(List items) {
  Value value;
  value.data_ = make_sequence(std::move(items));
  return value;
}

Value Value::tuple(List items) {
  Value value;
  value.data_ = Tuple{make_sequence(std::move(items))};
  return value;
}

Value Value::dict(Dict items) {
  Value value;
  value.data_ = std::make_shared<const Dict>(std::move(items));
  return value;
}

std::int64_t Value::integral() const { return is(Kind::boolean) ? boolean() : std::get<std::int64_t>(data_); }

double Value::number() const {
  return is(Kind::real) ? std::get<double>(data_) : static_cast<double>(integral());
}

const List& Value::items() const {
  return is(Kind::tuple) ? std::get<Tuple>(data_).data->items : std::get<std::shared_ptr<const Sequence>>(data_)->items;
}

std::string Value::undefined_message() const {
  const Text& what = std::get<Missing>(data_).what;
  return fmt::format("{} is undefined.", what ? *what : "A value");
}

bool Value::truthy() const {
  switch (kind()) {
    case Kind::undefined:
    case Kind::none: return false;
    case Kind::boolean:
    case Kind::integer: return integral() != 0;
    case Kind::real: return number() != 0.0;
    case Kind::string: return !string().empty();
    case Kind::list:
    case Kind::tuple: return !items().empty();
    case Kind::dict: return dict().size() != 0;
    default: return true;
  }
}

int Value::depth() const {
  switch (kind()) {
    case Kind::list: return std::get<std::shared_ptr<const Sequence>>(data_)->depth;
    case Kind::tuple: return std::get<Tuple>(data_).data->depth;
    case Kind::dict: return dict().depth();
    case Kind::callable: return callable().depth;
    default: return 0;
  }
}

void Dict::set(Value key, Value value) {
  if (key.is(Kind::list) || key.is_dict() || key.is_undefined()) {
    throw TemplateError(fmt::format("A {} cannot be the key of a dict.", name_of(key.kind())));
  }
  depth_ = depth_with(depth_with(depth_, key), value);
  const std::size_t at = position(key);
  if (at < entries_.size()) {
    entries_[at].second = std::move(value);
    return;
  }
  if (key.is_string()) index_.emplace(key.string(), at);
  entries_.emplace_back(std::move(key), std::move(value));
}

std::size_t Dict::position(const Value& key) const {
  if (key.is_string()) {
    const auto found = index_.find(key.string());
    return found == index_.end() ? entries_.size() : found->second;
  }
  std::size_t at = 0;
  while (at < entries_.size() && (entries_[at].first.is_string() || !equal(entries_[at].first, key))) ++at;
  return at;
}

const Value* Dict::find(std::string_view key) const {
  const auto found = index_.find(std::string(key));
  return found == index_.end() ? nullptr : &entries_[found->second].second;
}

const Value* Dict::find(const Value& key) const {
  const std::size_t at = position(key);
  return at < entries_.size() ? &entries_[at].second : nullptr;
}

bool equal(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return a.integral() == b.integral();
  if (a.is_number() && b.is_number()) return a.number() == b.number();
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::string: return a.string() == b.string();
    case Kind::list:
    case Kind::tuple: return std::equal(a.items().begin(), a.items().end(), b.items().begin(), b.items().end(), equal);
    case Kind::dict:
      return a.dict().size() == b.dict().size() &&
             std::all_of(a.dict().entries().begin(), a.dict().entries().end(), [&](const auto& entry) {
               const Value* other = b.dict().find(entry.first);
               return other != nullptr && equal(entry.second, *other);
             });
    case Kind::namespace_: return &a.name_space() == &b.name_space();
    case Kind::callable: return &a.callable() == &b.callable();
    case Kind::loop: return &a.loop() == &b.loop();
    default: return true;
  }
}

int compare(const Value& a, const Value& b) {
  const auto sign = [](auto x, auto y) { return x < y ? -1 : (y < x ? 1 : 0); };
  if (a.is_integral() && b.is_integral()) return sign(a.integral(), b.integral());
  if (a.is_number() && b.is_number()) return sign(a.number(), b.number());
  if (a.is_string() && b.is_string()) return sign(a.string(), b.string());  // UTF-8 sorts as its code points do
  if (a.is_sequence() && a.kind() == b.kind()) {
    const std::size_t common = std::min(a.items().size(), b.items().size());
    for (std::size_t i = 0; i < common; ++i) {
      if (!equal(a.items()[i], b.items()[i])) return compare(a.items()[i], b.items()[i]);
    }
    return sign(a.items().size(), b.items().size());
  }
  if (a.is_undefined()) throw TemplateError(a.undefined_message());
  if (b.is_undefined()) throw TemplateError(b.undefined_message());
  throw TemplateError(fmt::format("A {} and a {} have no order.", name_of(a.kind()), name_of(b.kind())));
}

List iterate(const Value& value) {
  List result;
  switch (value.kind()) {
    case Kind::undefined: return result;
    case Kind::list:
    case Kind::tuple: return value.items();
    case Kind::dict:
      for (const auto& entry : value.dict().entries()) result.push_back(entry.first);
      return result;
    case Kind::string: {
      const std::string_view text = value.string();
      for (std::size_t at = 0; at < text.size();) {
        const std::size_t begin = at;
        unicode::decode(text, at);
        result.emplace_back(text.substr(begin, at - begin));
      }
      return result;
    }
    default: throw TemplateError(fmt::format("A {} cannot be iterated over.", name_of(value.kind())));
  }
}

}  // namespace nibble::jinja
