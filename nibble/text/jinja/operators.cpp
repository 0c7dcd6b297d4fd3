#include "nibble/text/jinja/operators.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "nibble/text/jinja/unicode.h"

namespace nibble::jinja {
namespace {

constexpr std::string_view symbols[] = {"+", "-", "*", "/", "//", "%", "**"};

[[noreturn]] void refuse(BinaryOp op, const Value& a, const Value& b) {
  if (a.is_undefined()) throw TemplateError(a.undefined_message());
  if (b.is_undefined()) throw TemplateError(b.undefined_message());
  throw TemplateError(fmt::format("'{}' does not work on a {} and a {}.", symbols[static_cast<int>(op)],
                                  name_of(a.kind()), name_of(b.kind())));
}

std::int64_t floor_divide(std::int64_t a, std::int64_t b) {
  if (b == -1) return -a;
  const std::int64_t quotient = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

double floor_modulo(double a, double b) {
  const double rest = std::fmod(a, b);
  return rest != 0.0 && (rest < 0.0) != (b < 0.0) ? rest + b : rest;
}

std::optional<std::int64_t> integer_power(std::int64_t base, std::int64_t exponent) {
  std::int64_t result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) return std::nullopt;
    if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) return std::nullopt;
  }
  return result;
}

Value on_integers(BinaryOp op, std::int64_t a, std::int64_t b) {
  const bool divides = op == BinaryOp::divide || op == BinaryOp::floor_divide || op == BinaryOp::modulo;
  if (divides && b == 0) throw TemplateError("A number is divided by zero.");
  if (divides && a == std::numeric_limits<std::int64_t>::min() && b == -1) {
    throw TemplateError("An integer leaves the range of 64 bits.");
  }
  std::int64_t result = 0;
  bool overflow = false;
  switch (op) {
    case BinaryOp::add: overflow = __builtin_add_overflow(a, b, &result); break;
    case BinaryOp::subtract: overflow = __builtin_sub_overflow(a, b, &result); break;
    case BinaryOp::multiply: overflow = __builtin_mul_overflow(a, b, &result); break;
    case BinaryOp::divide: return static_cast<double>(a) / static_cast<double>(b);
    case BinaryOp::floor_divide: return floor_divide(a, b);
    case BinaryOp::modulo: return a - b * floor_divide(a, b);
    case BinaryOp::power: {
      if (b < 0) return std::pow(static_cast<double>(a), static_cast<double>(b));
      const auto power = integer_power(a, b);
      overflow = !power;
      result = power.value_or(0);
      break;
    }
  }
  if (overflow) throw TemplateError("An integer leaves the range of 64 bits.");
  return result;
}

Value on_reals(BinaryOp op, double a, double b) {
  const bool divides = op == BinaryOp::divide || op == BinaryOp::floor_divide || op == BinaryOp::modulo;
  if (divides && b == 0.0) throw TemplateError("A number is divided by zero.");
  switch (op) {
    case BinaryOp::add: return a + b;
    case BinaryOp::subtract: return a - b;
    case BinaryOp::multiply: return a * b;
    case BinaryOp::divide: return a / b;
    case BinaryOp::floor_divide: return std::floor((a - floor_modulo(a, b)) / b + 0.25);
    case BinaryOp::modulo: return floor_modulo(a, b);
    case BinaryOp::power: return std::pow(a, b);
  }
  return 0.0;
}

Value repeat(const Value& value, std::int64_t times) {
  const auto count = static_cast<std::size_t>(std::max<std::int64_t>(times, 0));
  const std::size_t size = value.is_string() ? value.string().size() : value.items().size() * sizeof(Value);
  if (count != 0 && size > max_text / count) throw TemplateError("A repeated value is too long.");
  if (value.is_string()) {
    std::string result;
    result.reserve(size * count);
    for (std::size_t i = 0; i < count; ++i) result += value.string();
    return result;
  }
  List items;
  items.reserve(value.items().size() * count);
  for (std::size_t i = 0; i < count; ++i) items.insert(items.end(), value.items().begin(), value.items().end());
  return value.is(Kind::list) ? Value::list(std::move(items)) : Value::tuple(std::move(items));
}

Value joined(const Value& a, const Value& b) {
  if (a.is_string()) {
    if (a.string().size() + b.string().size() > max_text) throw TemplateError("A string grows too long.");
    return a.string() + b.string();
  }
  List items = a.items();
  items.insert(items.end(), b.items().begin(), b.items().end());
  return a.is(Kind::list) ? Value::list(std::move(items)) : Value::tuple(std::move(items));
}

std::int64_t bound_of(const Value& value) {
  if (!value.is_integral()) {
    throw TemplateError(fmt::format("The bounds of a slice are integers, not a {}.", name_of(value.kind())));
  }
  return value.integral();
}

// The indices that Python's slice.indices gives.
std::vector<std::size_t> slice_indices(std::size_t size, const Value& begin, const Value& end, const Value& step_of) {
  const auto count = static_cast<std::int64_t>(size);
  const std::int64_t step = step_of.is_none() ? 1 : bound_of(step_of);
  if (step == 0) throw TemplateError("The step of a slice cannot be zero.");
  const std::int64_t low = step > 0 ? 0 : -1;
  const std::int64_t high = step > 0 ? count : count - 1;
  const auto clamp = [&](const Value& value, std::int64_t absent) {
    if (value.is_none()) return absent;
    const std::int64_t bound = bound_of(value);
    return std::clamp(bound < 0 ? bound + count : bound, low, high);
  };
  const std::int64_t first = clamp(begin, step > 0 ? low : high);
  const std::int64_t last = clamp(end, step > 0 ? high : low);
  std::vector<std::size_t> indices;
  for (std::int64_t i = first; step > 0 ? i < last : i > last;) {
    indices.push_back(static_cast<std::size_t>(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return indices;
}

}  // namespace

Value binary(BinaryOp op, const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return on_integers(op, a.integral(), b.integral());
  if (a.is_number() && b.is_number()) return on_reals(op, a.number(), b.number());
  if (op == BinaryOp::add && a.kind() == b.kind() && (a.is_string() || a.is_sequence())) return joined(a, b);
  if (op == BinaryOp::multiply) {
    if ((a.is_string() || a.is_sequence()) && b.is_integral()) return repeat(a, b.integral());
    if ((b.is_string() || b.is_sequence()) && a.is_integral()) return repeat(b, a.integral());
  }
  if (op == BinaryOp::modulo && a.is_string() && !b.is_undefined()) return format_percent(a.string(), b);
  refuse(op, a, b);
}

Value negate(const Value& a) {
  if (a.is_integral()) return on_integers(BinaryOp::subtract, 0, a.integral());
  if (a.is(Kind::real)) return -a.number();
  refuse(BinaryOp::subtract, Value(0), a);
}

bool contains(const Value& container, const Value& item) {
  switch (container.kind()) {
    case Kind::undefined: return false;
    case Kind::string:
      if (!item.is_string()) {
        throw TemplateError(fmt::format("A {} cannot be searched in a string.", name_of(item.kind())));
      }
      return container.string().find(item.string()) != std::string::npos;
    case Kind::list:
    case Kind::tuple:
      return std::any_of(container.items().begin(), container.items().end(),
                         [&](const Value& have) { return equal(have, item); });
    case Kind::dict: return container.dict().find(item) != nullptr;
    default: throw TemplateError(fmt::format("'in' does not work on a {}.", name_of(container.kind())));
  }
}

const Value* find_item(const Value& object, const Value& index, Value& storage) {
  if (object.is_dict()) return object.dict().find(index);
  if (!index.is_integral()) return nullptr;
  std::int64_t at = index.integral();
  if (object.is_sequence()) {
    const auto size = static_cast<std::int64_t>(object.items().size());
    if (at < 0) at += size;
    return at >= 0 && at < size ? &object.items()[static_cast<std::size_t>(at)] : nullptr;
  }
  if (!object.is_string()) return nullptr;
  const auto offsets = unicode::offsets(object.string());
  const auto size = static_cast<std::int64_t>(offsets.size()) - 1;
  if (at < 0) at += size;
  if (at < 0 || at >= size) return nullptr;
  const std::size_t begin = offsets[static_cast<std::size_t>(at)];
  storage = object.string().substr(begin, offsets[static_cast<std::size_t>(at) + 1] - begin);
  return &storage;
}

Value slice(const Value& object, const Value& begin, const Value& end, const Value& step) {
  if (object.is_undefined()) throw TemplateError(object.undefined_message());
  if (object.is_string()) {
    const std::string& text = object.string();
    const auto offsets = unicode::offsets(text);
    std::string result;
    for (const std::size_t i : slice_indices(offsets.size() - 1, begin, end, step)) {
      result.append(text, offsets[i], offsets[i + 1] - offsets[i]);
    }
    return result;
  }
  if (!object.is_sequence()) throw TemplateError(fmt::format("A {} cannot be sliced.", name_of(object.kind())));
  List items;
  for (const std::size_t i : slice_indices(object.items().size(), begin, end, step)) {
    items.push_back(object.items()[i]);
  }
  return object.is(Kind::list) ? Value::list(std::move(items)) : Value::tuple(std::move(items));
}

}  // namespace nibble::jinja
