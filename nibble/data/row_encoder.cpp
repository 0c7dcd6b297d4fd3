#include "nibble/data/row_encoder.h"

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/data/row_parts.h"

namespace nibble::data {
namespace {

using text::ByteSpan;

constexpr std::string_view in_row_encoder = "row";

bool is_blank(std::string_view text) { return text.find_first_not_of(" \t\r\n") == text.npos; }

// A token that reaches over the edge of a span belongs to it if it holds nothing but white space outside: tokenizers
// join a space with the word behind it.
bool belongs(std::string_view text, ByteSpan token, ByteSpan span) {
  if (token.begin == token.end) return token.begin >= span.begin && token.begin < span.end;
  if (token.end <= span.begin || token.begin >= span.end) return false;
  const bool blank_before = token.begin >= span.begin || is_blank(text.substr(token.begin, span.begin - token.begin));
  const bool blank_behind = token.end <= span.end || is_blank(text.substr(span.end, token.end - span.end));
  return blank_before && blank_behind;
}

Example mark(std::string_view text, const text::Encoding& encoding, const std::vector<ByteSpan>& spans) {
  Example example;
  example.tokens.reserve(encoding.ids.size());
  auto span = spans.begin();
  for (std::size_t i = 0; i < encoding.ids.size(); ++i) {
    const ByteSpan token = encoding.offsets[i];
    while (span != spans.end() && token.begin >= span->end) ++span;
    const bool trained = span != spans.end() && belongs(text, token, *span);
    example.tokens.push_back(static_cast<std::int32_t>(encoding.ids[i]));
    example.trained.push_back(trained && i > 0 ? 1 : 0);
  }
  return example;
}

// Templates print "developer" in the system message's place.
bool has_system(const Chat& chat) {
  if (chat.messages.empty()) return false;
  const OrderedJson& role = chat.messages.front()["role"];
  return role == "system" || role == "developer";
}

Chat with_system(Chat chat, const std::string& system) {
  chat.messages.insert(chat.messages.begin(), message("system", system));
  if (chat.first_completion > 0) ++chat.first_completion;
  if (!chat.counted.empty()) chat.counted.insert(chat.counted.begin(), std::nullopt);
  return chat;
}

bool has_trained(const Example& example) {
  return std::find(example.trained.begin(), example.trained.end(), 1) != example.trained.end();
}

}  // namespace

RowEncoder::RowEncoder(const text::Tokenizer& tokenizer, const text::ChatTemplate* chat_template, TrainOn train_on,
                       OrderedJson variables, Think think, std::string system)
    : tokenizer_(tokenizer), train_on_(train_on), system_(std::move(system)) {
  check<UsageError>(chat_template != nullptr || think == Think::stock, "--think",
                    "The model has no chat template, whose thoughts these would be; leave --think at stock.");
  if (chat_template != nullptr) mask_.emplace(tokenizer, *chat_template, std::move(variables), think);
}

Example RowEncoder::encode(const RowContent& row) const {
  if (const auto* pair = std::get_if<PreferencePair>(&row)) return encode_pair(*pair);
  const auto* chat = std::get_if<Chat>(&row);
  const auto* labelled = std::get_if<LabelledInput>(&row);
  Example example = chat       ? encode_segment(*chat)
                    : labelled ? encode_labelled(*labelled)
                               : encode_segment(std::get<PlainText>(row));
  check<DataError>(has_trained(example), in_row_encoder,
                   "The row has no trained token: what the loss would count is empty or is not printed.");
  return example;
}

Example RowEncoder::encode_pair(const PreferencePair& pair) const {
  check<UsageError>(train_on_ != TrainOn::all, "--train-on",
                    "A preference's loss compares the answers alone; train on assistant or last, not on all.");
  const auto encode_side = [&](const auto& side) { return std::visit([&](const auto& row) { return encode_segment(row); }, side); };
  Example example = encode_side(pair.chosen);
  const Example rejected = encode_side(pair.rejected);
  check<DataError>(has_trained(example) && has_trained(rejected), in_row_encoder,
                   "The {} answer has no trained token: it is empty or is not printed.",
                   has_trained(example) ? "rejected" : "chosen");
  check<DataError>(example.tokens != rejected.tokens, in_row_encoder,
                   "The chosen and the rejected answer are the same tokens: there is nothing to prefer.");
  example.rejected_begin = static_cast<std::uint32_t>(example.tokens.size());
  example.tokens.insert(example.tokens.end(), rejected.tokens.begin(), rejected.tokens.end());
  example.trained.insert(example.trained.end(), rejected.trained.begin(), rejected.trained.end());
  return example;
}

Example RowEncoder::encode_labelled(const LabelledInput& row) const {
  const std::string& system = row.system.empty() ? system_ : row.system;
  if (!mask_) {
    const std::string prompt = system.empty() ? row.input : system + "\n\n" + row.input;
    return encode_segment(PlainText{.text = prompt + " " + row.label, .trained_from = prompt.size()});
  }
  Chat chat{.messages = OrderedJson::array(), .tools = nullptr};
  if (!system.empty()) chat.messages.push_back(message("system", system));
  chat.messages.push_back(message("user", row.input));
  chat.messages.push_back(message("assistant", row.label));
  return encode_segment(chat);
}

Example RowEncoder::encode_segment(const Chat& chat) const {
  check<DataError>(mask_.has_value(), in_row_encoder,
                   "The row holds messages, but the model has no chat template; give one, or rows of \"text\" or of "
                   "\"prompt\" and \"completion\".");
  const bool begun = system_.empty() || has_system(chat);
  const MaskedChat masked = mask_->apply(begun ? chat : with_system(chat, system_), train_on_);
  return mark(masked.text, masked.encoding, masked.trained);
}

Example RowEncoder::encode_segment(const PlainText& plain) const {
  const std::string& text = plain.text;
  const text::Encoding encoding = tokenizer_.encode(text, {.offsets = true});
  const std::size_t from = train_on_ == TrainOn::all ? 0 : plain.trained_from;
  Example example = mark(text, encoding, {{static_cast<std::uint32_t>(from), static_cast<std::uint32_t>(text.size())}});
  const auto eos = tokenizer_.eos_id();
  if (!eos) return example;
  const auto end = static_cast<std::int32_t>(*eos);
  if (example.tokens.empty() || example.tokens.back() != end) {
    example.tokens.push_back(end);
    example.trained.push_back(0);
  }
  // The end is trained wherever it came from: a tokenizer may have put it there itself.
  example.trained.back() = from < text.size() && example.tokens.size() > 1 ? 1 : 0;
  return example;
}

}  // namespace nibble::data
