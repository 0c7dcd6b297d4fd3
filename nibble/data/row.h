#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/text/chat_template.h"

namespace nibble::data {

using text::OrderedJson;

// How a row of a JSONL file holds its example.
enum class RowForm {
  messages,            // {"messages": [{"role", "content"}], "tools"?}
  conversations,       // ShareGPT: {"conversations": [{"from", "value"}], "system"?, "tools"?}
  prompt_completion,   // {"prompt", "completion"}: two texts, or two lists of messages
  instruction_output,  // {"instruction", "input"?, "output", "system"?}
  instruction_response,  // {"instruction", "input"?, "response", "system"?}
  preference,          // {"prompt"?, "chosen", "rejected"}: texts, or lists of messages
  classification,      // {"input", "label", "system"?}
  text,                // {"text"}
};

std::string_view name_of(RowForm form);
// Throws UsageError listing the names.
RowForm row_form_of(std::string_view name);
// By the keys of one row; throws DataError listing the forms where none fits.
RowForm detect_row_form(const OrderedJson& row);

struct Chat {
  OrderedJson messages;
  OrderedJson tools;                // a list, or null
  std::size_t first_completion = 0;  // turns before this one are the prompt and are never trained
  // By message, whether its own "train" or "weight" has it counted; empty where no message says. It decides before TrainOn.
  std::vector<std::optional<bool>> counted = {};

  std::optional<bool> counts(std::size_t message) const { return counted.empty() ? std::nullopt : counted[message]; }
};

// A text whose bytes from `trained_from` on are trained, as is the end token that is put behind it.
struct PlainText {
  std::string text;
  std::size_t trained_from = 0;
};

// Two answers to one prompt, of which the first is preferred. Both sides are texts or both are chats, with the prompt in each.
struct PreferencePair {
  std::variant<Chat, PlainText> chosen, rejected;
};

// A text and what it is to be called. As an example, the label is the answer to the input: a turn of a chat, or behind a space
// where the model has no chat template.
struct LabelledInput {
  std::string input, label;
  std::string system;  // may be empty
};

using RowContent = std::variant<Chat, PlainText, PreferencePair, LabelledInput>;

// Parses one line; its nesting is bounded. Throws DataError with a sentence that names no file.
OrderedJson parse_row(std::string_view line);
// JSON inside of a string of a row; discarded (is_discarded) where it is not JSON or is nested too deeply.
OrderedJson parse_inner(std::string_view text);
// Reads a row of the given form; roles, contents and tool calls are checked. Throws DataError likewise.
RowContent read_row(const OrderedJson& row, RowForm form);

// The sentence of an error about a row without the place in brackets, for one that names file and line; a template's own stays.
std::string_view sentence_of(const Error& error);

}  // namespace nibble::data
