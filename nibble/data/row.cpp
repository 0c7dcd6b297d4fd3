#include "nibble/data/row.h"

#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/data/csv.h"
#include "nibble/text/utf8.h"

namespace nibble::data {
namespace {

struct FormName {
  RowForm form;
  std::string_view name;
};

constexpr FormName form_names[] = {
    {RowForm::messages, "messages"},
    {RowForm::conversations, "conversations"},
    {RowForm::prompt_completion, "prompt-completion"},
    {RowForm::instruction_output, "instruction-output"},
    {RowForm::instruction_response, "instruction-response"},
    {RowForm::preference, "preference"},
    {RowForm::classification, "classification"},
    {RowForm::text, "text"},
};

constexpr int max_depth = 64;

// JSON that is nested too deeply is refused before anything walks it.
bool is_shallow(std::string_view line) {
  int depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > max_depth) return false;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return true;
}

// A line that csv_to_rows made, not one of a file that happens to begin so.
bool is_bad_row(std::string_view line) {
  constexpr std::size_t longest = 400;
  const auto steers = [](char c) { return static_cast<unsigned char>(c) < ' '; };
  return line.starts_with(bad_row_mark) && line.size() <= longest && std::none_of(line.begin() + 1, line.end(), steers);
}

}  // namespace

std::string_view name_of(RowForm form) {
  for (const FormName& entry : form_names) {
    if (entry.form == form) return entry.name;
  }
  return "?";
}

RowForm row_form_of(std::string_view name) {
  for (const FormName& entry : form_names) {
    if (entry.name == name) return entry.form;
  }
  std::string known;
  for (const FormName& entry : form_names) {
    known += known.empty() ? "" : ", ";
    known += entry.name;
  }
  fail<UsageError>("data", "There is no form of rows \"{}\"; known are: {}.", name, known);
}

namespace {

// The row's keys as a reader is told of them: the first few, each cut where it is long.
std::string keys_text(const OrderedJson& row) {
  constexpr std::size_t most_keys = 8, most_bytes = 40;
  std::string keys;
  std::size_t count = 0;
  for (const auto& entry : row.items()) {
    if (++count > most_keys) return keys + ", ...";
    const std::string key = entry.key().substr(0, most_bytes);
    keys += fmt::format("{}\"{}\"", keys.empty() ? "" : ", ", key.substr(0, text::valid_utf8_prefix(key)));
  }
  return keys.empty() ? "none" : keys;
}

}  // namespace

RowForm detect_row_form(const OrderedJson& row) {
  const auto has = [&](const char* key) { return row.contains(key) && !row[key].is_null(); };
  if (has("messages")) return RowForm::messages;
  if (has("conversations")) return RowForm::conversations;
  if (has("prompt") && has("completion")) return RowForm::prompt_completion;
  if (has("instruction") && has("output")) return RowForm::instruction_output;
  if (has("instruction") && has("response")) return RowForm::instruction_response;
  if (has("chosen") && has("rejected")) return RowForm::preference;
  if (has("input") && has("label")) return RowForm::classification;
  if (has("text")) return RowForm::text;
  fail<DataError>("row",
                  "The row's keys ({}) fit no form; wanted is \"messages\", \"conversations\", \"prompt\" with "
                  "\"completion\", \"instruction\" with \"output\" or \"response\", \"chosen\" with \"rejected\", \"input\" with \"label\", or "
                  "\"text\"; --map of train, eval and info says which columns stand for them.",
                  keys_text(row));
}

std::string_view sentence_of(const Error& error) {
  const std::string_view what = error.what(), place = place_of(error);
  return !place.empty() && place != "chat_template" ? what.substr(place.size() + 3) : what;
}

OrderedJson parse_row(std::string_view line) {
  if (is_bad_row(line)) fail<DataError>("row", "{}", line.substr(1));
  check<DataError>(is_shallow(line), "row", "The JSON is nested deeper than {} levels.", max_depth);
  OrderedJson row;
  try {
    row = OrderedJson::parse(line);
  } catch (const OrderedJson::exception& error) {
    // What nlohmann says begins with an identifier in brackets.
    const std::string_view what = error.what();
    const auto begin = what.find("] ");
    fail<DataError>("row", "The line is not JSON: {}.", begin == what.npos ? what : what.substr(begin + 2));
  }
  check<DataError>(row.is_object(), "row", "The line holds {}, not an object.", row.type_name());
  return row;
}

OrderedJson parse_inner(std::string_view text) {
  if (!is_shallow(text)) return OrderedJson(OrderedJson::value_t::discarded);
  return OrderedJson::parse(text, nullptr, false);
}

}  // namespace nibble::data
