#include "nibble/io/json.h"

#include <cmath>
#include <functional>
#include <unordered_set>

#include "nibble/base/error.h"

namespace nibble {
namespace {

// Watches the parser: the depth of nesting, and keys that come twice.
class Watch {
 public:
  Watch(std::string_view origin, const JsonLimits& limits) : origin_(origin), limits_(limits) {}

  bool operator()(int depth, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) {
      check<DataError>(depth < limits_.max_depth, origin_, "The JSON is nested deeper than {} levels.",
                       limits_.max_depth);
    }
    if (!limits_.unique_keys) return true;
    if (event == Event::object_start) keys_.emplace_back();
    if (event == Event::object_end) keys_.pop_back();
    if (event == Event::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      check<DataError>(keys_.back().insert(key).second, origin_, "The key \"{}\" comes twice in one JSON object.", key);
    }
    return true;
  }

 private:
  std::string_view origin_;
  const JsonLimits& limits_;
  std::vector<std::unordered_set<std::string>> keys_;
};

// What an error shows of a value: short, so that a hostile file cannot fill a screen.
std::string shown(const Json& value) {
  constexpr std::size_t longest = 60;
  if (value.is_object()) return fmt::format("an object of {} keys", value.size());
  if (value.is_array()) return fmt::format("a list of {} values", value.size());
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > longest) text = text.substr(0, longest) + "...";
  return text;
}

}  // namespace

Json parse_json(std::string_view text, std::string_view origin, const JsonLimits& limits) {
  check<DataError>(text.size() <= limits.max_bytes, origin, "The JSON has {} bytes; at most {} are read.", text.size(),
                   limits.max_bytes);
  try {
    Watch watch(origin, limits);
    return Json::parse(text.begin(), text.end(), std::ref(watch));
  } catch (const Json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..." without its first bracket.
    const std::string_view what = error.what();
    const auto end = what.find("] ");
    fail<DataError>(origin, "This is not valid JSON: {}.", end == what.npos ? what : what.substr(end + 2));
  }
}

Json read_json_file(const fs::path& path, const JsonLimits& limits) {
  return parse_json(read_file(path, limits.max_bytes), path.string(), limits);
}

JsonObject::JsonObject(const Json& value, std::string origin) : value_(&value), origin_(std::move(origin)) {
  check<DataError>(value.is_object(), origin_, "A JSON object is expected here; found {}.", shown(value));
}

const Json* JsonObject::find(std::string_view key) const {
  const auto at = value_->find(key);
  return at == value_->end() || at->is_null() ? nullptr : &*at;
}

void JsonObject::fail_key(std::string_view key, std::string_view expected) const {
  const Json* value = find(key);
  if (value == nullptr) fail<DataError>(origin_, "The key \"{}\" must be {}; it is absent.", key, expected);
  fail<DataError>(origin_, "The key \"{}\" must be {}; found {}.", key, expected, shown(*value));
}

bool JsonObject::boolean(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr || !value->is_boolean()) fail_key(key, "true or false");
  return value->get<bool>();
}

bool JsonObject::boolean(std::string_view key, bool otherwise) const { return has(key) ? boolean(key) : otherwise; }

std::string JsonObject::string(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr || !value->is_string()) fail_key(key, "a string");
  return value->get<std::string>();
}

std::string JsonObject::string(std::string_view key, std::string_view otherwise) const {
  return has(key) ? string(key) : std::string(otherwise);
}

std::int64_t JsonObject::to_integer(std::string_view key, const Json& value, IntegerRange range) const {
  const auto refuse = [&] { fail_key(key, fmt::format("an integer from {} to {}", range.min, range.max)); };
  std::int64_t result = 0;
  if (value.is_number_unsigned()) {
    const auto number = value.get<std::uint64_t>();
    if (number > static_cast<std::uint64_t>(INT64_MAX)) refuse();
    result = static_cast<std::int64_t>(number);
  } else if (value.is_number_integer()) {
    result = value.get<std::int64_t>();
  } else if (value.is_number_float()) {
    const auto number = value.get<double>();
    if (!(std::abs(number) < 0x1p53) || std::trunc(number) != number) refuse();
    result = static_cast<std::int64_t>(number);
  } else {
    refuse();
  }
  if (result < range.min || result > range.max) refuse();
  return result;
}

std::int64_t JsonObject::integer(std::string_view key, IntegerRange range) const {
  static const Json absent;
  const Json* value = find(key);
  return to_integer(key, value == nullptr ? absent : *value, range);
}

std::int64_t JsonObject::integer(std::string_view key, IntegerRange range, std::int64_t otherwise) const {
  return has(key) ? integer(key, range) : otherwise;
}

double JsonObject::to_number(std::string_view key, const Json& value, NumberRange range) const {
  const auto result = value.is_number() ? value.get<double>() : std::nan("");
  if (!(result >= range.min && result <= range.max)) {
    fail_key(key, fmt::format("a number from {} to {}", range.min, range.max));
  }
  return result;
}

double JsonObject::number(std::string_view key, NumberRange range) const {
  static const Json absent;
  const Json* value = find(key);
  return to_number(key, value == nullptr ? absent : *value, range);
}

double JsonObject::number(std::string_view key, NumberRange range, double otherwise) const {
  return has(key) ? number(key, range) : otherwise;
}

std::vector<std::string> JsonObject::strings(std::string_view key) const {
  std::vector<std::string> result;
  const Json* value = find(key);
  if (value == nullptr) return result;
  if (!value->is_array()) fail_key(key, "a list of strings");
  for (const auto& item : *value) {
    if (!item.is_string()) fail_key(key, "a list of strings only");
    result.push_back(item.get<std::string>());
  }
  return result;
}

std::vector<std::int64_t> JsonObject::integers(std::string_view key, IntegerRange range) const {
  std::vector<std::int64_t> result;
  const Json* value = find(key);
  if (value == nullptr) return result;
  if (!value->is_array()) return {to_integer(key, *value, range)};
  for (const auto& item : *value) result.push_back(to_integer(key, item, range));
  return result;
}

std::optional<JsonObject> JsonObject::object(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_object()) fail_key(key, "an object");
  return JsonObject(*value, fmt::format("{}: {}", origin_, key));
}

}  // namespace nibble
