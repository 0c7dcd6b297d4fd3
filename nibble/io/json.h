#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/io/file.h"

namespace nibble {

using Json = nlohmann::json;

struct JsonLimits {
  std::size_t max_bytes = std::size_t{256} << 20;
  int max_depth = 64;
  bool unique_keys = false;  // refuse an object that has a key twice; otherwise the last one counts, as in Python
};

// Parses one JSON value. `origin` names the text in errors (DataError, with line and column).
Json parse_json(std::string_view text, std::string_view origin, const JsonLimits& limits = {});
Json read_json_file(const fs::path& path, const JsonLimits& limits = {});

// Python's json.dumps(value, indent=2, sort_keys=True), byte for byte, without a newline at the end. Doubles read back
// bit for bit; infinities and NaN are refused, for JSON has none.
std::string write_json(const Json& value);
// The same on one line: json.dumps(value, sort_keys=True), as JSONL wants it.
std::string write_json_line(const Json& value);

// Reads typed values out of an object; a failure names file, key, what is expected and what was found. It refers to
// `value`, which must outlive it.
class JsonObject {
 public:
  // `origin` is the file, and what leads to this object inside it.
  JsonObject(const Json& value, std::string origin);
  JsonObject(const Json&& value, std::string origin) = delete;

  const Json& json() const { return *value_; }
  const std::string& origin() const { return origin_; }
  // Present and not null.
  bool has(std::string_view key) const { return find(key) != nullptr; }

  bool boolean(std::string_view key) const;
  bool boolean(std::string_view key, bool otherwise) const;
  std::string string(std::string_view key) const;
  std::string string(std::string_view key, std::string_view otherwise) const;

  // An integer from `min` to `max`; 4.0 counts as 4.
  struct IntegerRange {
    std::int64_t min = 0;
    std::int64_t max = INT64_MAX;
  };
  std::int64_t integer(std::string_view key, IntegerRange range) const;
  std::int64_t integer(std::string_view key, IntegerRange range, std::int64_t otherwise) const;

  // A finite number from `min` to `max`.
  struct NumberRange {
    double min;
    double max;
  };
  double number(std::string_view key, NumberRange range) const;
  double number(std::string_view key, NumberRange range, double otherwise) const;

  // A list of strings; absent or null gives an empty one.
  std::vector<std::string> strings(std::string_view key) const;
  // An integer or a list of integers, as eos_token_id is; absent or null gives an empty list.
  std::vector<std::int64_t> integers(std::string_view key, IntegerRange range) const;
  std::optional<JsonObject> object(std::string_view key) const;

  // Throws a DataError: Key "key" must be `expected`; it is absent, or what is there.
  [[noreturn]] void fail_key(std::string_view key, std::string_view expected) const;

 private:
  const Json* find(std::string_view key) const;
  std::int64_t to_integer(std::string_view key, const Json& value, IntegerRange range) const;
  double to_number(std::string_view key, const Json& value, NumberRange range) const;

  const Json* value_;
  std::string origin_;
};

}  // namespace nibble
