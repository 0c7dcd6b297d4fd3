#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/data/row_parts.h"

namespace nibble::data {
namespace {

constexpr std::string_view in_row_forms = "row";

std::string text_member(const OrderedJson& row, const char* key) {
  const OrderedJson& value = member(row, key);
  check<DataError>(value.is_string(), in_row_forms, "\"{}\" is {}, not a string.", key, value.type_name());
  return value.get<std::string>();
}

bool has_text(const OrderedJson& row, const char* key) {
  const auto found = row.find(key);
  return found != row.end() && found->is_string() && !found->get_ref<const std::string&>().empty();
}

void check_content(const OrderedJson& turn, std::size_t index, bool may_be_absent) {
  const auto found = turn.find("content");
  if (found == turn.end() || found->is_null()) {
    check<DataError>(may_be_absent, in_row_forms, "Message {} has no \"content\".", index);
    return;
  }
  if (found->is_string()) return;
  check<DataError>(found->is_array(), in_row_forms, "The content of message {} is {}, neither a string nor a list of parts.",
                   index, found->type_name());
  for (const OrderedJson& part : *found) {
    const bool is_text = part.is_object() && part.contains("type") && part["type"] == "text" &&
                         part.contains("text") && part["text"].is_string();
    check<DataError>(is_text, in_row_forms, "The content of message {} has a part that is not text.", index);
  }
}

// Templates expect a call's arguments as an object; the form with a string of JSON is read into one.
void read_calls(OrderedJson& turn, std::size_t index) {
  OrderedJson& calls = turn["tool_calls"];
  check<DataError>(calls.is_array(), in_row_forms, "\"tool_calls\" of message {} is {}, not a list.", index,
                   calls.type_name());
  for (OrderedJson& call : calls) {
    check<DataError>(call.is_object(), in_row_forms, "A tool call of message {} is not an object.", index);
    OrderedJson& function = call.contains("function") ? call["function"] : call;
    check<DataError>(function.is_object() && function.contains("name") && function["name"].is_string(), in_row_forms,
                     "A tool call of message {} has no function name.", index);
    if (!function.contains("arguments") || !function["arguments"].is_string()) continue;
    OrderedJson parsed = parse_inner(function["arguments"].get<std::string>());
    if (parsed.is_object()) function["arguments"] = std::move(parsed);
  }
}

// A message's "train" (true or false) or "weight" (1 or 0) as the first of them; null stands for none.
void read_flags(OrderedJson& turn, std::size_t index) {
  const auto take = [&](const char* key) {
    const OrderedJson value = turn.value(key, OrderedJson());
    turn.erase(key);
    return value;
  };
  OrderedJson train = take("train");
  const OrderedJson weight = take("weight");
  check<DataError>(train.is_null() || train.is_boolean(), in_row_forms, "\"train\" of message {} is {}; true or false is allowed.", index,
                   train.dump());
  if (!weight.is_null()) {
    check<DataError>(weight.is_number() && (weight == 0 || weight == 1), in_row_forms,
                     "\"weight\" of message {} is {}; 1 or 0 is allowed, for a token counts whole or not at all.", index, weight.dump());
    const OrderedJson counted = weight == 1;
    check<DataError>(train.is_null() || train == counted, in_row_forms, "\"train\" and \"weight\" of message {} contradict each other.",
                     index);
    train = counted;
  }
  if (!train.is_null()) turn["train"] = std::move(train);
}

}  // namespace

const OrderedJson& member(const OrderedJson& row, const char* key) {
  const auto found = row.find(key);
  check<DataError>(found != row.end() && !found->is_null(), in_row_forms, "The row has no \"{}\".", key);
  return *found;
}

OrderedJson message(std::string_view role, const OrderedJson& content) {
  return {{"role", role}, {"content", content}};
}

OrderedJson tools_of(const OrderedJson& row) {
  const auto found = row.find("tools");
  if (found == row.end() || found->is_null()) return nullptr;
  OrderedJson tools = *found;
  if (tools.is_string()) {
    const std::string text = tools.get<std::string>();
    if (text.empty()) return nullptr;
    tools = parse_inner(text);
    check<DataError>(!tools.is_discarded(), in_row_forms, "\"tools\" is a string that is not JSON.");
  }
  check<DataError>(tools.is_array(), in_row_forms, "\"tools\" is {}, not a list.", tools.type_name());
  return tools;
}

bool has_calls(const OrderedJson& turn) {
  const auto found = turn.find("tool_calls");
  return found != turn.end() && !found->is_null() && !(found->is_array() && found->empty());
}

OrderedJson checked_messages(const OrderedJson& value, const char* key) {
  static constexpr std::string_view roles[] = {"system", "developer", "user", "assistant", "tool", "ipython"};
  check<DataError>(value.is_array(), in_row_forms, "\"{}\" is {}, not a list of messages.", key, value.type_name());
  check<DataError>(!value.empty(), in_row_forms, "\"{}\" is an empty list.", key);
  OrderedJson messages = value;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    OrderedJson& turn = messages[i];
    check<DataError>(turn.is_object(), in_row_forms, "Message {} is {}, not an object.", i, turn.type_name());
    const auto role = turn.find("role");
    check<DataError>(role != turn.end() && role->is_string(), in_row_forms, "Message {} has no \"role\".", i);
    const std::string name = role->get<std::string>();
    check<DataError>(std::find(std::begin(roles), std::end(roles), name) != std::end(roles), in_row_forms,
                     "Message {} has the role \"{}\"; allowed: system, developer, user, assistant, tool, ipython.", i,
                     name);
    if (has_calls(turn)) {
      read_calls(turn, i);
    } else {
      turn.erase("tool_calls");
    }
    check_content(turn, i, has_calls(turn));
    read_flags(turn, i);
  }
  return messages;
}

Chat make_chat(OrderedJson messages, OrderedJson tools, std::size_t first_completion) {
  Chat chat{.messages = std::move(messages), .tools = std::move(tools), .first_completion = first_completion};
  for (std::size_t i = 0; i < chat.messages.size(); ++i) {
    OrderedJson& turn = chat.messages[i];
    if (!turn.contains("train")) continue;
    chat.counted.resize(chat.messages.size());
    chat.counted[i] = turn["train"].get<bool>();
    turn.erase("train");
  }
  return chat;
}

namespace {

std::string role_of_share(const std::string& from, std::size_t index) {
  static constexpr std::pair<std::string_view, std::string_view> roles[] = {
      {"human", "user"},       {"user", "user"},        {"gpt", "assistant"},     {"assistant", "assistant"},
      {"model", "assistant"},  {"chatgpt", "assistant"}, {"bing", "assistant"},   {"bard", "assistant"},
      {"system", "system"},    {"tool", "tool"},        {"observation", "tool"},  {"function_response", "tool"},
      {"function_call", "assistant"}};
  for (const auto& [name, role] : roles) {
    if (name == from) return std::string(role);
  }
  fail<DataError>(in_row_forms,
                  "Message {} is from \"{}\"; allowed are human, gpt, system, tool, observation, function_call and "
                  "their usual other names.",
                  index, from);
}

OrderedJson called_function(const std::string& text, std::size_t index) {
  OrderedJson call = parse_inner(text);
  check<DataError>(call.is_object() && call.contains("name"), in_row_forms,
                   "Message {} is a function_call whose value is not JSON with a \"name\".", index);
  return {{"role", "assistant"},
          {"content", ""},
          {"tool_calls", OrderedJson::array({{{"type", "function"}, {"function", std::move(call)}}})}};
}

RowContent read_conversations(const OrderedJson& row) {
  const OrderedJson& turns = member(row, "conversations");
  check<DataError>(turns.is_array(), in_row_forms, "\"conversations\" is {}, not a list.", turns.type_name());
  OrderedJson messages = OrderedJson::array();
  if (has_text(row, "system")) messages.push_back(message("system", row["system"]));
  for (std::size_t i = 0; i < turns.size(); ++i) {
    const OrderedJson& turn = turns[i];
    const bool whole = turn.is_object() && turn.contains("from") && turn["from"].is_string() &&
                       turn.contains("value") && turn["value"].is_string();
    check<DataError>(whole, in_row_forms, "Message {} needs \"from\" and \"value\", two strings.", i);
    const std::string from = turn["from"].get<std::string>();
    const std::string role = role_of_share(from, i);
    messages.push_back(from == "function_call" ? called_function(turn["value"].get<std::string>(), i)
                                               : message(role, turn["value"]));
    for (const char* flag : {"train", "weight"}) {
      if (turn.contains(flag)) messages.back()[flag] = turn[flag];
    }
  }
  return make_chat(checked_messages(messages, "conversations"), tools_of(row));
}

RowContent read_prompt_completion(const OrderedJson& row) {
  const OrderedJson& prompt = member(row, "prompt");
  const OrderedJson& completion = member(row, "completion");
  if (prompt.is_string() && completion.is_string()) {
    const std::string text = prompt.get<std::string>();
    return PlainText{.text = text + completion.get<std::string>(), .trained_from = text.size()};
  }
  check<DataError>(prompt.is_array() && completion.is_array(), in_row_forms,
                   "\"prompt\" is {} and \"completion\" is {}; wanted are two strings or two lists of messages.",
                   prompt.type_name(), completion.type_name());
  OrderedJson messages = checked_messages(prompt, "prompt");
  const std::size_t first = messages.size();
  for (OrderedJson& turn : checked_messages(completion, "completion")) messages.push_back(std::move(turn));
  return make_chat(std::move(messages), tools_of(row), first);
}

RowContent read_instruction(const OrderedJson& row, const char* answer) {
  OrderedJson messages = OrderedJson::array();
  if (has_text(row, "system")) messages.push_back(message("system", row["system"]));
  std::string question = text_member(row, "instruction");
  if (has_text(row, "input")) question += "\n\n" + row["input"].get<std::string>();
  messages.push_back(message("user", question));
  messages.push_back(message("assistant", text_member(row, answer)));
  return Chat{.messages = std::move(messages), .tools = nullptr};
}

// Labels are often numbers, 0 and 1.
std::string label_of(const OrderedJson& row) {
  const OrderedJson& value = member(row, "label");
  if (value.is_number_integer() || value.is_boolean()) return value.dump();
  std::string label = text_member(row, "label");
  check<DataError>(!label.empty(), in_row_forms, "\"label\" is empty.");
  return label;
}

RowContent read_classification(const OrderedJson& row) {
  return LabelledInput{.input = text_member(row, "input"),
                       .label = label_of(row),
                       .system = has_text(row, "system") ? row["system"].get<std::string>() : ""};
}

}  // namespace

RowContent read_row(const OrderedJson& row, RowForm form) {
  switch (form) {
    case RowForm::messages:
      return make_chat(checked_messages(member(row, "messages"), "messages"), tools_of(row));
    case RowForm::conversations: return read_conversations(row);
    case RowForm::prompt_completion: return read_prompt_completion(row);
    case RowForm::instruction_output: return read_instruction(row, "output");
    case RowForm::instruction_response: return read_instruction(row, "response");
    case RowForm::preference: return read_preference(row);
    case RowForm::classification: return read_classification(row);
    case RowForm::text: return PlainText{.text = text_member(row, "text")};
  }
  fail<UsageError>(in_row_forms, "The form of the row is unknown.");
}

}  // namespace nibble::data
