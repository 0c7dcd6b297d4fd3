#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/data/row_parts.h"

namespace nibble::data {
namespace {

constexpr std::string_view in_row_preference = "row";

// Where the answers begin in two texts with a common beginning: at the last blank of it, for the word after that differs.
std::size_t common_prompt(const std::string& chosen, const std::string& rejected) {
  const auto differ = std::mismatch(chosen.begin(), chosen.end(), rejected.begin(), rejected.end()).first;
  const auto blank = std::string_view(chosen.begin(), differ).find_last_of(" \t\r\n");
  check<DataError>(blank != std::string_view::npos, in_row_preference,
                   "The row has no \"prompt\", and \"chosen\" and \"rejected\" have no common beginning.");
  return blank;
}

PreferencePair text_pair(const OrderedJson& row, const std::string& chosen, const std::string& rejected) {
  const auto prompt = row.find("prompt");
  const bool has_prompt = prompt != row.end() && !prompt->is_null();
  const std::string text = has_prompt ? prompt->get<std::string>() : std::string();
  const std::size_t from = has_prompt ? text.size() : common_prompt(chosen, rejected);
  return {.chosen = PlainText{.text = text + chosen, .trained_from = from},
          .rejected = PlainText{.text = text + rejected, .trained_from = from}};
}

// The number of messages that two chats begin with alike.
std::size_t common_messages(const OrderedJson& a, const OrderedJson& b) {
  std::size_t count = 0;
  while (count < a.size() && count < b.size() && a[count] == b[count]) ++count;
  return count;
}

Chat chat_of(const OrderedJson& prompt, const OrderedJson& answer, std::size_t first_completion, const OrderedJson& tools) {
  OrderedJson messages = prompt;
  for (const OrderedJson& turn : answer) messages.push_back(turn);
  Chat chat = make_chat(std::move(messages), tools, first_completion);
  for (std::size_t i = 0; i < first_completion; ++i) {
    check<DataError>(chat.counts(i) != true, in_row_preference, "Message {} is of the prompt, which a preference cannot train.", i);
  }
  return chat;
}

PreferencePair chat_pair(const OrderedJson& row, const OrderedJson& chosen, const OrderedJson& rejected) {
  const auto found = row.find("prompt");
  OrderedJson prompt = OrderedJson::array();
  std::size_t common = 0;
  if (found != row.end() && found->is_array()) {
    prompt = checked_messages(*found, "prompt");
  } else {
    // Whole chats in each, whatever text a column beside them repeats; or answers to a text.
    common = common_messages(chosen, rejected);
    if (common == 0 && found != row.end() && found->is_string()) prompt.push_back(message("user", *found));
    check<DataError>(common > 0 || !prompt.empty(), in_row_preference,
                     "The row has no \"prompt\", and \"chosen\" and \"rejected\" have no common first message.");
  }
  const OrderedJson tools = tools_of(row);
  const std::size_t first = prompt.size() + common;
  return {.chosen = chat_of(prompt, chosen, first, tools), .rejected = chat_of(prompt, rejected, first, tools)};
}

bool has_answer(const Chat& chat) {
  return std::any_of(chat.messages.begin() + static_cast<std::ptrdiff_t>(chat.first_completion), chat.messages.end(),
                     [](const OrderedJson& turn) {
                       const auto content = turn.find("content");
                       const bool said = content != turn.end() && !content->is_null() && !content->empty() && *content != "";
                       return turn["role"] == "assistant" && (said || has_calls(turn));
                     });
}

void check_answer(const std::variant<Chat, PlainText>& side, const char* key) {
  const auto* text = std::get_if<PlainText>(&side);
  const bool there = text ? text->trained_from < text->text.size() : has_answer(std::get<Chat>(side));
  check<DataError>(there, in_row_preference, "\"{}\" is empty: it holds no answer to the prompt.", key);
}

}  // namespace

PreferencePair read_preference(const OrderedJson& row) {
  const OrderedJson& chosen = member(row, "chosen");
  const OrderedJson& rejected = member(row, "rejected");
  const bool texts = chosen.is_string() && rejected.is_string();
  check<DataError>(texts || (chosen.is_array() && rejected.is_array()), in_row_preference,
                   "\"chosen\" is {} and \"rejected\" is {}; wanted are two strings or two lists of messages.",
                   chosen.type_name(), rejected.type_name());
  const auto prompt = row.find("prompt");
  const bool fits = prompt == row.end() || prompt->is_null() || prompt->is_string() || prompt->is_array();
  check<DataError>(fits, in_row_preference, "\"prompt\" is {}, neither a string nor a list of messages.", fits ? "" : prompt->type_name());
  check<DataError>(chosen != rejected, in_row_preference, "\"chosen\" and \"rejected\" are the same: there is nothing to prefer.");
  const auto answers_of = [](const OrderedJson& answer, const char* key) {
    return answer.is_string() ? OrderedJson::array({message("assistant", answer)}) : checked_messages(answer, key);
  };
  const bool chats = !texts || (prompt != row.end() && prompt->is_array());
  PreferencePair pair = chats ? chat_pair(row, answers_of(chosen, "chosen"), answers_of(rejected, "rejected"))
                              : text_pair(row, chosen.get<std::string>(), rejected.get<std::string>());
  check_answer(pair.chosen, "chosen");
  check_answer(pair.rejected, "rejected");
  return pair;
}

}  // namespace nibble::data
