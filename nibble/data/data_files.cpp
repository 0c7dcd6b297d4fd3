#include "nibble/data/data_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "nibble/base/error.h"
#include "nibble/io/file.h"

namespace nibble::data {
namespace {

constexpr std::string_view in_data_files = "--data";

DataFile parse_one(const std::string& name) {
  const std::size_t colon = name.rfind(':');
  if (colon == name.npos || colon == 0 || path_exists(name)) return {.path = name, .weight = {}};
  double weight = 0;
  const char* end = name.data() + name.size();
  const auto [behind, error] = std::from_chars(name.data() + colon + 1, end, weight);
  const bool is_number = behind == end && error != std::errc::invalid_argument;
  if (!is_number) return {.path = name, .weight = {}};
  check<UsageError>(error == std::errc() && std::isfinite(weight) && weight > 0, in_data_files,
                    "The weight of \"{}\" is {}; it is a number above 0.", name.substr(0, colon), name.substr(colon + 1));
  return {.path = name.substr(0, colon), .weight = weight};
}

}  // namespace

DataFiles DataFiles::parse(std::span<const std::string> names) {
  DataFiles result;
  for (const std::string& name : names) result.files_.push_back(parse_one(name));
  for (const DataFile& file : result.files_) {
    check<UsageError>(file.weight.has_value() == result.weighted(), in_data_files,
                      "\"{}\" has {} weight and \"{}\" has {}: give every file one, or none.", result.files_[0].path.string(),
                      result.weighted() ? "a" : "no", file.path.string(), result.weighted() ? "none" : "one");
  }
  const auto inputs = std::count_if(result.files_.begin(), result.files_.end(), [](const DataFile& f) { return f.path == "-"; });
  check<UsageError>(inputs <= 1, in_data_files, "Standard input (-) was named {} times; it can be read once.", inputs);
  return result;
}

std::string DataFiles::text() const {
  std::string text;
  for (const DataFile& file : files_) {
    text += text.empty() ? "" : " ";
    text += file.path == "-" ? "standard input" : file.path.string();
    if (file.weight) text += fmt::format(":{}", *file.weight);
  }
  return text;
}

}  // namespace nibble::data
