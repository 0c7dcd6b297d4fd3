#include "nibble/data/chat_mask.h"

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/data/chat_turns.h"

namespace nibble::data {
namespace {

using text::ByteSpan;

constexpr std::string_view in_chat_mask = "chat_mask";
constexpr std::pair<TrainOn, std::string_view> train_on_names[] = {
    {TrainOn::assistant, "assistant"}, {TrainOn::last, "last"}, {TrainOn::all, "all"}};

std::vector<std::size_t> trained_messages(const Chat& chat, TrainOn train_on) {
  std::size_t last = chat.messages.size();
  while (last > 0 && chat.messages[last - 1]["role"] != "assistant") --last;
  std::vector<std::size_t> result;
  for (std::size_t i = 0; i < chat.messages.size(); ++i) {
    const bool answer = i >= chat.first_completion && chat.messages[i]["role"] == "assistant";
    const bool wanted = answer && (train_on == TrainOn::assistant || i + 1 == last);
    if (chat.counts(i).value_or(wanted)) result.push_back(i);
  }
  return result;
}

std::vector<std::size_t> silenced_messages(const Chat& chat) {
  std::vector<std::size_t> result;
  for (std::size_t i = 0; i < chat.messages.size(); ++i) {
    if (chat.counts(i) == false) result.push_back(i);
  }
  return result;
}

// What of a text of `bytes` lies outside of the spans.
std::vector<ByteSpan> outside(const std::vector<ByteSpan>& spans, std::size_t bytes) {
  std::vector<ByteSpan> result;
  std::uint32_t begin = 0;
  for (const ByteSpan span : spans) {
    if (span.begin > begin) result.push_back({begin, span.begin});
    begin = span.end;
  }
  if (begin < bytes) result.push_back({begin, static_cast<std::uint32_t>(bytes)});
  return result;
}

// The spans that the template marks, by message; none where they cannot be put to the assistant's turns.
std::vector<std::optional<ByteSpan>> marked_spans(const Chat& chat, const std::vector<ByteSpan>& marked) {
  std::vector<std::optional<ByteSpan>> result(chat.messages.size());
  std::size_t turns = 0;
  for (std::size_t i = 0; i < chat.messages.size(); ++i) {
    if (chat.messages[i]["role"] != "assistant") continue;
    if (turns < marked.size()) result[i] = marked[turns];
    ++turns;
  }
  if (turns != marked.size()) result.clear();
  return result;
}

// What turns begin with in place of what the template puts there.
class Thoughts {
 public:
  Thoughts() = default;
  Thoughts(const SplitChat& split, const ThinkFormat& format, Think think, const ChatTurns& turns, std::string_view text)
      : edits_(split.thoughts.size()) {
    for (std::size_t i = 0; i < edits_.size(); ++i) {
      if (split.chat.messages[i]["role"] != "assistant") continue;
      const auto begin = turns.begin(i);
      if (!begin) continue;
      edits_[i] = edit(split.thoughts[i], format, think);
      edits_[i]->place = empty_block_at(text, *begin);
    }
  }

  std::string put_into(std::string_view text) const {
    std::string result;
    std::size_t at = 0;
    for (const auto& edit : edits_) {
      if (!edit) continue;
      check<DataError>(edit->place.begin >= at, in_chat_mask, "The template does not print the turns in their order.");
      result.append(text.substr(at, edit->place.begin - at)).append(edit->block);
      at = edit->place.end;
    }
    return result.append(text.substr(at));
  }

  // Appends where a message's span of the text lies afterwards, with as much of its thought as is counted.
  void append_span(std::vector<ByteSpan>& spans, std::size_t message, ByteSpan span) const {
    const auto* edit = message < edits_.size() && edits_[message] ? &*edits_[message] : nullptr;
    if (!edit) {
      spans.push_back({moved(span.begin), moved(span.end)});
      return;
    }
    const std::uint32_t behind = moved(edit->place.end);
    const auto block = static_cast<std::uint32_t>(edit->block.size());
    if (span.begin < edit->place.begin) spans.push_back({moved(span.begin), behind - block});
    spans.push_back({behind - block + static_cast<std::uint32_t>(edit->counted_from), moved(span.end)});
  }

 private:
  struct Edit {
    BlockPlace place = {};
    std::string block;
    std::size_t counted_from = 0;  // in the block
  };

  static Edit edit(const std::optional<std::string>& thought, const ThinkFormat& format, Think think) {
    Edit result;
    if (think == Think::empty) {
      result.block = format.empty;
      const bool own = thought && thought->find_first_not_of(" \t\r\n") == thought->npos;
      result.counted_from = own ? 0 : result.block.size();
    } else if (think == Think::keep && thought) {
      result.block = format.open + *thought + format.close;
    }
    if (result.counted_from == 0 && !result.block.empty() && format.prompt_opens) result.counted_from = format.open.size();
    return result;
  }

  std::uint32_t moved(std::size_t at) const {
    std::size_t result = at;
    for (const auto& edit : edits_) {
      if (edit && edit->place.end <= at) result += edit->block.size() - (edit->place.end - edit->place.begin);
    }
    return static_cast<std::uint32_t>(result);
  }

  std::vector<std::optional<Edit>> edits_;  // by message
};

std::vector<ByteSpan> spans_of(const std::vector<std::size_t>& messages, const std::vector<std::optional<ByteSpan>>& marked,
                               ChatTurns& turns, const Thoughts& thoughts) {
  std::vector<ByteSpan> spans;
  for (const std::size_t message : messages) {
    const bool is_marked = message < marked.size() && marked[message];
    const auto span = is_marked ? marked[message] : turns.span(message);
    if (!span) continue;
    const std::size_t before = spans.size();
    thoughts.append_span(spans, message, *span);
    check<DataError>(before == 0 || spans[before - 1].end <= spans[before].begin, in_chat_mask,
                     "The template prints message {} in a place that cannot be told from the one before.", message);
  }
  return spans;
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

ChatMask::ChatMask(const text::Tokenizer& tokenizer, const text::ChatTemplate& chat_template, OrderedJson variables, Think think)
    : tokenizer_(tokenizer), template_(chat_template), variables_(std::move(variables)), think_(think) {
  if (think_ == Think::stock) return;
  format_ = think_format(template_, variables_);
  if (think_ == Think::empty && !variables_.contains("enable_thinking")) variables_["enable_thinking"] = false;
}

MaskedChat ChatMask::apply(const Chat& given, TrainOn train_on) const {
  std::optional<SplitChat> split;
  if (think_ != Think::stock) split = split_thoughts(given);
  const Chat& chat = split ? split->chat : given;
  const ChatProbe probe(template_, chat, variables_);
  const text::RenderedChat rendered = probe.render_all();
  ChatTurns turns(probe, chat, tokenizer_, rendered.text);
  const Thoughts thoughts = split ? Thoughts(*split, format_, think_, turns, rendered.text) : Thoughts();
  MaskedChat result;
  result.text = split ? thoughts.put_into(rendered.text) : rendered.text;
  result.encoding =
      tokenizer_.encode(result.text, {.add_special_tokens = false, .parse_special = true, .offsets = true});
  const auto marked = marked_spans(chat, rendered.generated);
  if (train_on == TrainOn::all) {
    result.trained = outside(spans_of(silenced_messages(chat), marked, turns, thoughts), result.text.size());
    return result;
  }
  const auto messages = trained_messages(chat, train_on);
  check<DataError>(!messages.empty(), in_chat_mask, "The chat has no assistant turn to train on{}.",
                   silenced_messages(chat).empty() ? "" : " that its messages' \"train\" or \"weight\" leave");
  result.trained = spans_of(messages, marked, turns, thoughts);
  return result;
}

std::string ChatMask::prompt(const Chat& given) const {
  if (think_ == Think::stock) return ChatProbe(template_, given, variables_).render(given.messages.size(), true);
  const SplitChat split = split_thoughts(given);
  const ChatProbe probe(template_, split.chat, variables_);
  const std::string text = probe.render(split.chat.messages.size());
  const std::string with_prompt = probe.render(split.chat.messages.size(), true);
  check<DataError>(with_prompt.starts_with(text), in_chat_mask,
                   "The template prints the chat otherwise before an answer than without; leave --think at stock.");
  const ChatTurns turns(probe, split.chat, tokenizer_, text);
  std::string result = Thoughts(split, format_, think_, turns, text).put_into(text) + with_prompt.substr(text.size());
  if (think_ != Think::empty || result.ends_with(format_.empty)) return result;
  const bool opened = result.ends_with(format_.open);
  return result + (opened ? format_.close : format_.empty);
}

}  // namespace nibble::data
