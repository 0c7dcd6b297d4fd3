#include "nibble/data/chat_turns.h"

#include <algorithm>

#include "nibble/base/error.h"

namespace nibble::data {
namespace {

using text::ByteSpan;

constexpr std::string_view in_chat_turns = "chat_mask";
constexpr std::string_view blanks = " \t\r\n";

std::size_t skip_blanks(std::string_view text, std::size_t at) {
  return std::min(text.find_first_not_of(blanks, at), text.size());
}

std::string_view trimmed(std::string_view text) {
  const std::size_t begin = skip_blanks(text, 0);
  return text.substr(begin, text.find_last_not_of(blanks) + 1 - begin);
}

}  // namespace

std::optional<ByteSpan> ChatTurns::span(std::size_t message) {
  if (!end_mark_) end_mark_ = find_end_mark();
  const auto turn = find_turn(message);
  if (!turn) return std::nullopt;
  return ByteSpan{static_cast<std::uint32_t>(turn->begin), static_cast<std::uint32_t>(end_of(*turn, message))};
}

std::optional<std::size_t> ChatTurns::begin(std::size_t message) const {
  const auto turn = find_turn(message);
  return turn ? std::optional(turn->begin) : std::nullopt;
}

std::optional<ChatTurns::Turn> ChatTurns::find_turn(std::size_t message) const {
  const OrderedJson& turn = chat_.messages[message];
  std::optional<Region> found[3];
  for (const Field field : {Field::content, Field::reasoning, Field::calls}) {
    if (!ChatProbe::has_field(turn, field)) continue;
    found[static_cast<int>(field)] = probe_.find(full_, chat_.messages.size(), message, field);
  }
  const auto& [content, reasoning, calls] = found;
  if (!content && !reasoning && !calls) return std::nullopt;
  Turn result{.begin = full_.size(), .end = 0, .exact = content && content->exact, .calls = calls.has_value()};
  for (const auto& region : found) {
    if (!region) continue;
    result.begin = std::min(result.begin, region->begin);
    result.end = std::max(result.end, region->end);
  }
  // The content stands where it begins, unless the template or another field puts something before it.
  const bool content_first = result.exact && content->begin == result.begin && !reasoning &&
                             !(calls && content->begin == content->end);
  if (!content_first) result.begin = begin_after_prompt(message, result);
  return result;
}

std::size_t ChatTurns::begin_after_prompt(std::size_t message, const Turn& turn) const {
  const std::size_t from = end_of_previous(message);
  const std::size_t until = begin_of_next(message);
  std::optional<std::size_t> begin;
  if (from <= turn.begin && turn.end <= until) begin = probe_.prompt_end(full_, message, from, turn.begin);
  check<DataError>(begin.has_value(), in_chat_turns,
                   "Where message {} begins in what the chat template prints cannot be told; mark the assistant's "
                   "part of the template with {{% generation %}}, or train on all.",
                   message);
  return *begin;
}

std::size_t ChatTurns::end_of_previous(std::size_t message) const {
  while (message > 0) {
    if (const auto region = region_of(full_, chat_.messages.size(), --message)) return region->end;
  }
  return 0;
}

std::size_t ChatTurns::begin_of_next(std::size_t message) const {
  while (++message < chat_.messages.size()) {
    if (const auto region = region_of(full_, chat_.messages.size(), message)) return region->begin;
  }
  return full_.size();
}

std::optional<Region> ChatTurns::region_of(std::string_view text, std::size_t count, std::size_t message) const {
  std::optional<Region> result;
  for (const Field field : {Field::content, Field::reasoning, Field::calls}) {
    if (!ChatProbe::has_field(chat_.messages[message], field)) continue;
    const auto region = probe_.find(text, count, message, field);
    if (!region) continue;
    if (!result) result = region;
    result->begin = std::min(result->begin, region->begin);
    result->end = std::max(result->end, region->end);
  }
  return result;
}

// What closes a turn, as the last assistant turn shows it where nothing follows: up to the first special token.
std::string ChatTurns::find_end_mark() const {
  std::size_t last = chat_.messages.size();
  while (last > 0 && chat_.messages[last - 1]["role"] != "assistant") --last;
  if (last == 0) return {};
  const bool is_end = last == chat_.messages.size();
  const std::string shorter = is_end ? std::string() : probe_.render(last);
  const std::string_view text = is_end ? full_ : std::string_view(shorter);
  const auto region = region_of(text, last, last - 1);
  if (!region || region->end == 0) return {};
  const std::string_view tail = text.substr(region->end);
  const bool calls = ChatProbe::has_field(chat_.messages[last - 1], Field::calls);
  const auto encoding = tokenizer_.encode(tail, {.add_special_tokens = false, .parse_special = true, .offsets = true});
  for (std::size_t i = 0; i < encoding.ids.size(); ++i) {
    const ByteSpan span = encoding.offsets[i];
    if (span.begin == span.end || !tokenizer_.is_special(encoding.ids[i])) continue;
    const std::size_t begin = calls ? span.begin : skip_blanks(tail, 0);
    return std::string(tail.substr(begin, span.end - begin));
  }
  return calls ? std::string() : std::string(trimmed(tail));
}

// Behind the mark that ends the turn, or where its own text ends.
std::size_t ChatTurns::end_of(const Turn& turn, std::size_t message) const {
  if (end_mark_->empty()) return turn.end;
  if (turn.calls) {
    const std::size_t until = begin_of_next(message);
    const std::size_t found = full_.substr(0, until).find(*end_mark_, turn.end);
    check<DataError>(found != full_.npos, in_chat_turns, "The end of the calls of message {} cannot be found.", message);
    return found + end_mark_->size();
  }
  const std::size_t begin = skip_blanks(full_, turn.end);
  if (full_.substr(begin).starts_with(*end_mark_)) return begin + end_mark_->size();
  check<DataError>(turn.exact, in_chat_turns,
                   "Where message {} ends in what the chat template prints cannot be told; mark the assistant's "
                   "part of the template with {{% generation %}}, or train on all.",
                   message);
  return turn.end;
}

}  // namespace nibble::data
