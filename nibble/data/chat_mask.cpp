#include "nibble/data/chat_mask.h"

#include <algorithm>

#include "nibble/base/error.h"

namespace nibble::data {
namespace {

using text::ByteSpan;

constexpr std::string_view where = "chat_mask";
constexpr std::string_view blanks = " \t\r\n";

constexpr std::pair<TrainOn, std::string_view> train_on_names[] = {
    {TrainOn::assistant, "assistant"}, {TrainOn::last, "last"}, {TrainOn::all, "all"}};

std::size_t skip_blanks(std::string_view text, std::size_t at) {
  return std::min(text.find_first_not_of(blanks, at), text.size());
}

std::string_view trimmed(std::string_view text) {
  const std::size_t begin = skip_blanks(text, 0);
  return text.substr(begin, text.find_last_not_of(blanks) + 1 - begin);
}

// What an assistant's turn prints, before its end is looked for.
struct Turn {
  std::size_t begin = 0;
  std::size_t end = 0;
  bool exact = false;
  bool calls = false;
};

// The turns of one chat in its rendered text.
class Turns {
 public:
  Turns(const ChatProbe& probe, const Chat& chat, const text::Tokenizer& tokenizer, const MaskedChat& masked)
      : probe_(probe), chat_(chat), tokenizer_(tokenizer), full_(masked.text), encoding_(masked.encoding) {}

  std::vector<ByteSpan> find(const std::vector<std::size_t>& messages) {
    find_end_mark();
    std::vector<ByteSpan> spans;
    for (const std::size_t message : messages) {
      const auto turn = find_turn(message);
      if (!turn) continue;
      const ByteSpan span{static_cast<std::uint32_t>(turn->begin), static_cast<std::uint32_t>(end_of(*turn, message))};
      check<DataError>(spans.empty() || spans.back().end <= span.begin, where,
                       "The template prints message {} in a place that cannot be told from the one before.", message);
      spans.push_back(span);
    }
    return spans;
  }

 private:
  std::optional<Turn> find_turn(std::size_t message) const {
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

  std::size_t begin_after_prompt(std::size_t message, const Turn& turn) const {
    const std::size_t from = end_of_previous(message);
    const std::size_t until = begin_of_next(message);
    std::optional<std::size_t> begin;
    if (from <= turn.begin && turn.end <= until) begin = probe_.prompt_end(full_, message, from, turn.begin);
    check<DataError>(begin.has_value(), where,
                     "Where message {} begins in what the chat template prints cannot be told; mark the assistant's "
                     "part of the template with {{% generation %}}, or train on all.",
                     message);
    return *begin;
  }

  std::size_t end_of_previous(std::size_t message) const {
    while (message > 0) {
      if (const auto region = region_of(--message)) return region->end;
    }
    return 0;
  }

  std::size_t begin_of_next(std::size_t message) const {
    while (++message < chat_.messages.size()) {
      if (const auto region = region_of(message)) return region->begin;
    }
    return full_.size();
  }

  std::optional<Region> region_of(std::size_t message) const {
    std::optional<Region> result;
    for (const Field field : {Field::content, Field::reasoning, Field::calls}) {
      if (!ChatProbe::has_field(chat_.messages[message], field)) continue;
      const auto region = probe_.find(full_, chat_.messages.size(), message, field);
      if (!region) continue;
      if (!result) result = region;
      result->begin = std::min(result->begin, region->begin);
      result->end = std::max(result->end, region->end);
    }
    return result;
  }

  // What closes a turn, as the last assistant turn shows it where nothing follows: up to the first special token.
  void find_end_mark() {
    std::size_t last = chat_.messages.size();
    while (last > 0 && chat_.messages[last - 1]["role"] != "assistant") --last;
    if (last == 0) return;
    const bool is_end = last == chat_.messages.size();
    const std::string shorter = is_end ? std::string() : probe_.render(last);
    const std::string_view text = is_end ? full_ : std::string_view(shorter);
    std::size_t end = 0;
    const OrderedJson& turn = chat_.messages[last - 1];
    for (const Field field : {Field::content, Field::reasoning, Field::calls}) {
      if (!ChatProbe::has_field(turn, field)) continue;
      if (const auto region = probe_.find(text, last, last - 1, field)) end = std::max(end, region->end);
    }
    if (end == 0) return;
    const bool calls = ChatProbe::has_field(turn, Field::calls);
    const text::Encoding encoding = is_end ? encoding_ : tokenizer_.encode(text, options_);
    for (std::size_t i = 0; i < encoding.ids.size(); ++i) {
      const ByteSpan span = encoding.offsets[i];
      if (span.begin < end || span.begin == span.end || !tokenizer_.is_special(encoding.ids[i])) continue;
      const std::size_t begin = calls ? span.begin : skip_blanks(text, end);
      end_mark_ = text.substr(begin, span.end - begin);
      return;
    }
    if (!calls) end_mark_ = trimmed(text.substr(end));
  }

  // Behind the mark that ends the turn, or where its own text ends.
  std::size_t end_of(const Turn& turn, std::size_t message) const {
    if (end_mark_.empty()) return turn.end;
    if (turn.calls) {
      const std::size_t until = begin_of_next(message);
      const std::size_t found = full_.substr(0, until).find(end_mark_, turn.end);
      check<DataError>(found != full_.npos, where, "The end of the calls of message {} cannot be found.", message);
      return found + end_mark_.size();
    }
    const std::size_t begin = skip_blanks(full_, turn.end);
    if (full_.substr(begin).starts_with(end_mark_)) return begin + end_mark_.size();
    check<DataError>(turn.exact, where,
                     "Where message {} ends in what the chat template prints cannot be told; mark the assistant's "
                     "part of the template with {{% generation %}}, or train on all.",
                     message);
    return turn.end;
  }

  static constexpr text::EncodeOptions options_{.add_special_tokens = false, .parse_special = true, .offsets = true};

  const ChatProbe& probe_;
  const Chat& chat_;
  const text::Tokenizer& tokenizer_;
  std::string_view full_;
  const text::Encoding& encoding_;
  std::string end_mark_;
};

std::vector<std::size_t> trained_messages(const Chat& chat, TrainOn train_on) {
  std::vector<std::size_t> result;
  for (std::size_t i = chat.first_completion; i < chat.messages.size(); ++i) {
    if (chat.messages[i]["role"] == "assistant") result.push_back(i);
  }
  if (train_on == TrainOn::last && result.size() > 1) result.erase(result.begin(), result.end() - 1);
  return result;
}

// The spans that the template marks, if they can be put to the trained messages.
std::vector<ByteSpan> marked_spans(const Chat& chat, const std::vector<ByteSpan>& marked,
                                   const std::vector<std::size_t>& messages) {
  std::vector<ByteSpan> result;
  std::size_t turns = 0;
  for (std::size_t i = 0; i < chat.messages.size(); ++i) {
    if (chat.messages[i]["role"] != "assistant") continue;
    const bool wanted = std::find(messages.begin(), messages.end(), i) != messages.end();
    if (turns < marked.size() && wanted) result.push_back(marked[turns]);
    ++turns;
  }
  return turns == marked.size() ? result : std::vector<ByteSpan>();
}

}  // namespace

std::string_view name_of(TrainOn train_on) {
  for (const auto& [value, name] : train_on_names) {
    if (value == train_on) return name;
  }
  return "?";
}

TrainOn train_on_of(std::string_view name) {
  for (const auto& [value, known] : train_on_names) {
    if (known == name) return value;
  }
  fail<UsageError>("data", "The loss cannot be on \"{}\"; it is on assistant, last or all.", name);
}

MaskedChat ChatMask::apply(const Chat& chat, TrainOn train_on) const {
  const ChatProbe probe(template_, chat, variables_);
  text::RenderedChat rendered = probe.render_all();
  MaskedChat result;
  result.text = std::move(rendered.text);
  result.encoding =
      tokenizer_.encode(result.text, {.add_special_tokens = false, .parse_special = true, .offsets = true});
  if (train_on == TrainOn::all) {
    result.trained.push_back({0, static_cast<std::uint32_t>(result.text.size())});
    return result;
  }
  const auto messages = trained_messages(chat, train_on);
  check<DataError>(!messages.empty(), where, "The chat has no assistant turn to train on.");
  result.trained = marked_spans(chat, rendered.generated, messages);
  if (result.trained.empty()) result.trained = Turns(probe, chat, tokenizer_, result).find(messages);
  return result;
}

}  // namespace nibble::data
