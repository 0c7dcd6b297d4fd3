#include "nibble/data/column_map.h"

#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/data/row_parts.h"

namespace nibble::data {
namespace {

constexpr std::string_view in_column_map = "--map";

constexpr std::string_view column_meanings[] = {"user",       "assistant", "system", "prompt",        "completion", "text",
                                      "chosen",     "rejected",  "label",  "input",         "instruction", "output",
                                      "response",   "messages",  "conversations", "tools"};

bool may_be_absent(std::string_view name) { return name == "system" || name == "tools" || name == "input"; }

std::string columns_of(const OrderedJson& row) {
  constexpr std::size_t most = 20;
  std::string text;
  std::size_t count = 0;
  for (const auto& [key, value] : row.items()) {
    if (++count > most) return text + ", ...";
    text += (text.empty() ? "" : ", ") + key;
  }
  return text.empty() ? "none" : text;
}

}  // namespace

ColumnMap ColumnMap::parse(std::span<const std::string> given) {
  ColumnMap map;
  for (const std::string& entry : given) {
    const std::size_t equals = entry.rfind('=');
    check<UsageError>(equals != entry.npos && equals > 0, in_column_map, "\"{}\" is not of the form COLUMN=NAME, as question=user.", entry);
    const std::string name = entry.substr(equals + 1);
    check<UsageError>(std::find(std::begin(column_meanings), std::end(column_meanings), name) != std::end(column_meanings), in_column_map,
                      "A column cannot stand for \"{}\"; names are {}.", name, fmt::join(column_meanings, ", "));
    const bool twice = std::any_of(map.entries_.begin(), map.entries_.end(), [&](const Entry& e) { return e.name == name; });
    check<UsageError>(!twice, in_column_map, "Two columns stand for {}; one may.", name);
    map.entries_.push_back({.column = entry.substr(0, equals), .name = name});
  }
  const auto has = [&](std::string_view name) {
    return std::any_of(map.entries_.begin(), map.entries_.end(), [&](const Entry& e) { return e.name == name; });
  };
  map.chat_ = has("user") || has("assistant");
  if (!map.chat_) return map;
  check<UsageError>(has("user") && has("assistant"), in_column_map, "A chat needs a column for user and one for assistant; one is missing.");
  for (const Entry& entry : map.entries_) {
    const bool fits = entry.name == "user" || entry.name == "assistant" || entry.name == "system" || entry.name == "tools";
    check<UsageError>(fits, in_column_map, "{} does not go with user and assistant, which make a chat.", entry.name);
  }
  return map;
}

std::string ColumnMap::text() const {
  std::string text;
  for (const Entry& entry : entries_) text += fmt::format("{}{}={}", text.empty() ? "" : ",", entry.column, entry.name);
  return text;
}

OrderedJson ColumnMap::apply(OrderedJson row) const {
  if (entries_.empty()) return row;
  OrderedJson result = OrderedJson::object();
  if (row.contains("tools")) result["tools"] = row["tools"];
  for (const Entry& entry : entries_) {
    const auto found = row.find(entry.column);
    const bool absent = found == row.end() || found->is_null();
    check<DataError>(!absent || may_be_absent(entry.name), "row", "The row has no column \"{}\", which --map takes for {}; it has {}.",
                     entry.column, entry.name, columns_of(row));
    if (!absent) result[entry.name] = *found;
  }
  if (!chat_) return result;
  OrderedJson messages = OrderedJson::array();
  for (const char* role : {"system", "user", "assistant"}) {
    const bool left_out = !result.contains(role) || (role == std::string_view("system") && result[role] == "");
    if (!left_out) messages.push_back(message(role, result[role]));
  }
  OrderedJson chat = {{"messages", std::move(messages)}};
  if (result.contains("tools")) chat["tools"] = result["tools"];
  return chat;
}

}  // namespace nibble::data
