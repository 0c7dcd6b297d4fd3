#include "nibble/data/think.h"

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/data/chat_probe.h"
#include "nibble/data/row_parts.h"

namespace nibble::data {
namespace {

constexpr std::pair<Think, std::string_view> think_names[] = {
    {Think::stock, "stock"}, {Think::keep, "keep"}, {Think::strip, "strip"}, {Think::empty, "empty"}};

constexpr std::string_view blanks = " \t\r\n";
constexpr std::string_view open_tag = "<think>";
constexpr std::string_view close_tag = "</think>";
constexpr std::string_view thought_marker = "QthoughtQ";
constexpr std::string_view answer_marker = "ZanswerZ";

std::string_view without_line_feeds(std::string_view text) {
  const std::size_t begin = std::min(text.find_first_not_of('\n'), text.size());
  return text.substr(begin, text.find_last_not_of('\n') + 1 - begin);
}

// Takes the thought off the front of a turn's text. Text before the block, or a block that does not end, is no thought.
std::optional<std::string> take_thought(std::string& content) {
  const std::size_t close = content.find(close_tag);
  if (close == content.npos) return std::nullopt;
  const std::size_t first = std::min(content.find_first_not_of(blanks), close);
  const bool opens = std::string_view(content).substr(first).starts_with(open_tag);
  const std::size_t begin = opens ? first + open_tag.size() : 0;
  // The prompt may have held the tag that opens it.
  if (!opens && content.find(open_tag) < close) return std::nullopt;
  std::string thought(without_line_feeds(std::string_view(content).substr(begin, close - begin)));
  const std::size_t rest = content.find_first_not_of('\n', close + close_tag.size());
  content = rest == content.npos ? std::string() : content.substr(rest);
  return thought;
}

std::optional<std::string> thought_of(OrderedJson& turn) {
  std::optional<std::string> thought;
  for (const char* key : reasoning_keys) {
    const auto found = turn.find(key);
    if (found == turn.end()) continue;
    if (!thought && found->is_string() && *found != "") thought = without_line_feeds(found->get_ref<const std::string&>());
    turn.erase(key);
  }
  const auto content = turn.find("content");
  if (content == turn.end()) return thought;
  OrderedJson* text = &*content;
  if (content->is_array() && !content->empty()) text = &content->front()["text"];
  if (!text->is_string()) return thought;
  auto written = take_thought(text->get_ref<std::string&>());
  return thought ? thought : written;
}

// What the template prints; nothing where it refuses the chat.
std::string rendered(const text::ChatTemplate& chat_template, OrderedJson messages, const OrderedJson& variables, bool prompt) {
  try {
    return chat_template.render({.messages = std::move(messages), .add_generation_prompt = prompt, .variables = variables}).text;
  } catch (const DataError&) {
    return {};
  }
}

// What the model is given before it answers a question, from the last <think> on.
std::string opened_by_prompt(const text::ChatTemplate& chat_template, const OrderedJson& variables) {
  const std::string prompt = rendered(chat_template, {message("user", "q")}, variables, true);
  const std::size_t begin = prompt.rfind(open_tag);
  return begin == prompt.npos ? std::string() : prompt.substr(begin);
}

// The block that the template gives a turn without thoughts.
std::string block_of_its_own(const text::ChatTemplate& chat_template, const OrderedJson& variables) {
  const OrderedJson question = message("user", "q"), answer = message("assistant", std::string(answer_marker));
  const std::string text = rendered(chat_template, {question, answer, question, answer}, variables, false);
  const std::size_t begin = text.find(open_tag);
  const std::size_t end = text.find(answer_marker, std::min(begin, text.size()));
  return end == text.npos ? std::string() : text.substr(begin, end - begin);
}

bool drops_earlier_thoughts(const text::ChatTemplate& chat_template, const OrderedJson& variables) {
  const std::string thoughtful = fmt::format("{}\n{}\n{}\n\n{}", open_tag, thought_marker, close_tag, answer_marker);
  const std::string text = rendered(
      chat_template, {message("user", "q"), message("assistant", thoughtful), message("user", "r"), message("assistant", "b")},
      variables, false);
  return text.find(answer_marker) != text.npos && text.find(thought_marker) == text.npos;
}

}  // namespace

std::string_view name_of(Think think) {
  for (const auto& [value, name] : think_names) {
    if (value == think) return name;
  }
  return "?";
}

Think think_of(std::string_view name) {
  for (const auto& [value, known] : think_names) {
    if (known == name) return value;
  }
  fail<UsageError>("--think", "Thoughts cannot be treated by \"{}\"; choose keep, strip, empty or stock.", name);
}

ThinkFormat think_format(const text::ChatTemplate& chat_template, const OrderedJson& variables) {
  ThinkFormat format;
  bool known = drops_earlier_thoughts(chat_template, variables);
  OrderedJson answer = message("assistant", std::string(answer_marker));
  for (const char* key : reasoning_keys) answer[key] = thought_marker;
  const std::string text = rendered(chat_template, {message("user", "q"), answer}, variables, false);
  const std::size_t thought = text.find(thought_marker);
  const std::size_t begin = thought == text.npos ? text.npos : text.rfind(open_tag, thought);
  const std::size_t end = thought == text.npos ? text.npos : text.find(answer_marker, thought);
  if (begin != text.npos && end != text.npos) {
    const std::size_t behind = thought + thought_marker.size();
    const std::string close = text.substr(behind, end - behind);
    if (close.find(close_tag) != close.npos) {
      format.open = text.substr(begin, thought - begin);
      format.close = close;
      known = true;
    }
  }
  format.prompt_opens = opened_by_prompt(chat_template, variables) == format.open;
  format.empty = format.open + format.close;
  OrderedJson silent = variables;
  silent["enable_thinking"] = false;
  for (const std::string& block : {block_of_its_own(chat_template, variables), opened_by_prompt(chat_template, silent)}) {
    known = known || !block.empty();
    if (block.find(close_tag) != block.npos) format.empty = block;
  }
  check<UsageError>(known, "--think",
                    "The model's chat template knows no <think> blocks; leave --think at stock.");
  return format;
}

SplitChat split_thoughts(const Chat& chat) {
  SplitChat split{.chat = chat, .thoughts = {}};
  for (OrderedJson& turn : split.chat.messages) {
    split.thoughts.push_back(turn["role"] == "assistant" ? thought_of(turn) : std::nullopt);
  }
  return split;
}

BlockPlace empty_block_at(std::string_view text, std::size_t at) {
  std::size_t begin = at;
  const std::size_t last = at == 0 ? text.npos : text.find_last_not_of(blanks, at - 1);
  if (last != text.npos && text.substr(0, last + 1).ends_with(close_tag)) {
    const std::size_t inside = last + 1 - close_tag.size();
    const std::size_t opened = inside == 0 ? text.npos : text.find_last_not_of(blanks, inside - 1);
    if (opened != text.npos && text.substr(0, opened + 1).ends_with(open_tag)) begin = opened + 1 - open_tag.size();
  }
  if (begin == at && text.substr(at).starts_with(open_tag)) {
    const std::size_t inside = text.find_first_not_of(blanks, at + open_tag.size());
    if (inside == text.npos || !text.substr(inside).starts_with(close_tag)) return {at, at};
    return {at, std::min(text.find_first_not_of(blanks, inside + close_tag.size()), text.size())};
  }
  return {begin, at};
}

}  // namespace nibble::data
