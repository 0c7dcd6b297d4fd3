#include "nibble/text/tokenizer.h"

#include <limits>

#include "nibble/base/error.h"
#include "nibble/text/tokenizer_parts.h"
#include "nibble/text/utf8.h"

namespace nibble::text {
namespace {

constexpr std::size_t text_cap = std::numeric_limits<std::int32_t>::max();  // bytes

// Collects the tokens of one text.
class Collector {
 public:
  explicit Collector(bool offsets, Encoding& out) : offsets_(offsets), out_(out) {}

  void add(TokenId id, ByteSpan place) {
    out_.ids.push_back(id);
    if (offsets_) out_.offsets.push_back(place);
  }

  void add_pieces(const Pieces& pieces, const Bpe& model) {
    const std::string_view text = pieces.text.text();
    for (const ByteSpan span : pieces.spans) {
      tokens_.clear();
      model.tokenize(text.substr(span.begin, span.end - span.begin), tokens_);
      std::uint32_t at = span.begin;
      for (const WordToken& token : tokens_) {
        out_.ids.push_back(token.id);
        if (!offsets_) continue;
        // Characters that the model left out make the lengths too short, byte tokens in byte-level pieces too long.
        const std::uint32_t end = std::min(at + token.length, span.end);
        out_.offsets.push_back(pieces.text.place({at, end}));
        at = end;
      }
    }
  }

 private:
  bool offsets_;
  Encoding& out_;
  std::vector<WordToken> tokens_;
};

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<const Parts> parts) : parts_(std::move(parts)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Encoding Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  check<DataError>(text.size() <= text_cap, "Tokenizer::encode", "The text has {} bytes; at most {} are allowed.",
                   text.size(), text_cap);
  Encoding out;
  Collector collector(options.offsets, out);
  const auto end = static_cast<std::uint32_t>(text.size());
  if (options.add_special_tokens) {
    for (const TokenId id : parts_->frame.before) collector.add(id, {0, 0});
  }
  const AlignedText source = repaired_text(text, options.offsets, out.replaced);
  for (const auto& raw : parts_->raw_finder.split(source.text(), options.parse_special)) {
    if (raw.id) {
      collector.add(*raw.id, source.place(raw.span));
      continue;
    }
    AlignedText section = source.slice(raw.span);
    if (parts_->normalizer) parts_->normalizer->apply(section);
    for (const auto& stretch : parts_->normalized_finder.split(section.text(), options.parse_special)) {
      if (stretch.id) {
        collector.add(*stretch.id, section.place(stretch.span));
        continue;
      }
      Pieces pieces{section.slice(stretch.span), {{0, stretch.span.end - stretch.span.begin}}};
      for (const auto& step : parts_->pre_tokenizers.steps) step->apply(pieces);
      collector.add_pieces(pieces, *parts_->model);
    }
  }
  if (options.add_special_tokens) {
    for (const TokenId id : parts_->frame.after) collector.add(id, {end, end});
  }
  return out;
}

std::string Tokenizer::decode(std::span<const TokenId> ids, const DecodeOptions& options) const {
  std::vector<std::string> tokens;
  tokens.reserve(ids.size());
  for (const TokenId id : ids) {
    if (options.skip_special_tokens && is_special(id)) continue;
    const auto normalized = parts_->normalized_content.find(id);
    if (normalized != parts_->normalized_content.end()) {
      tokens.push_back(normalized->second);
    } else if (auto token = id_to_token(id)) {
      tokens.push_back(std::move(*token));
    }
  }
  std::string text;
  if (parts_->decoder) {
    parts_->decoder->apply(tokens);
    for (const std::string& token : tokens) text += token;
    return text;
  }
  for (std::size_t i = 0; i < tokens.size(); ++i) text.append(i == 0 ? "" : " ").append(tokens[i]);
  return text;
}

std::optional<TokenId> Tokenizer::token_to_id(std::string_view token) const {
  const auto id = parts_->added.find(token);
  return id ? id : parts_->model->vocabulary().find(token);
}

std::optional<std::string> Tokenizer::id_to_token(TokenId id) const {
  const std::string* token = parts_->added.token(id);
  if (token == nullptr) token = parts_->model->vocabulary().token(id);
  if (token == nullptr) return std::nullopt;
  return *token;
}

std::string Tokenizer::token_bytes(TokenId id) const {
  std::string token = id_to_token(id).value_or("");
  return parts_->decoder ? parts_->decoder->bytes(std::move(token)) : token;
}

std::size_t Tokenizer::vocab_size() const {
  std::size_t count = parts_->model->vocabulary().count();
  for (const auto& [id, token] : parts_->added_by_id) count += parts_->model->vocabulary().token(id) == nullptr;
  return count;
}

TokenId Tokenizer::id_end() const { return std::max(parts_->model->vocabulary().id_end(), parts_->added.id_end()); }

bool Tokenizer::is_special(TokenId id) const {
  const auto at = parts_->added_by_id.find(id);
  return at != parts_->added_by_id.end() && at->second.special;
}

const TokenizerConfig& Tokenizer::config() const { return parts_->config; }

namespace {

std::optional<TokenId> id_of(const Tokenizer& tokenizer, const std::optional<std::string>& token) {
  return token ? tokenizer.token_to_id(*token) : std::nullopt;
}

}  // namespace

std::optional<TokenId> Tokenizer::bos_id() const { return id_of(*this, config().bos_token); }
std::optional<TokenId> Tokenizer::eos_id() const { return id_of(*this, config().eos_token); }
std::optional<TokenId> Tokenizer::pad_id() const { return id_of(*this, config().pad_token); }
std::optional<TokenId> Tokenizer::unk_id() const { return id_of(*this, config().unk_token); }

}  // namespace nibble::text
