#include <cstddef>

#include "nibble/text/tokenizer.h"
#include "nibble/text/utf8.h"

namespace nibble::text {
namespace {

// What `bytes` ends with of a character that more bytes may complete.
std::string_view partial_character(std::string_view bytes) {
  while (!bytes.empty()) {
    bytes.remove_prefix(valid_utf8_prefix(bytes));
    if (bytes.empty()) break;
    const auto broken = static_cast<std::size_t>(-check_utf8(bytes, 0));
    const auto lead = static_cast<unsigned char>(bytes[0]);
    if (broken == bytes.size() && lead >= 0xC2 && lead <= 0xF4) break;
    bytes.remove_prefix(broken);
  }
  return bytes;
}

}  // namespace

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, const DecodeOptions& options)
    : tokenizer_(&tokenizer), options_(options) {}

std::string StreamDecoder::push(TokenId id) {
  if (options_.skip_special_tokens && tokenizer_->is_special(id)) return {};
  const std::string bytes = tokenizer_->token_bytes(id);
  if (bytes.empty()) return {};
  ids_.push_back(id);
  tail_ = partial_character(tail_.append(bytes));
  if (!tail_.empty()) return {};
  const std::string text = tokenizer_->decode(ids_, options_);
  const std::span held = std::span(ids_).subspan(known_);
  std::string fresh = text.starts_with(shown_) ? text.substr(shown_.size()) : tokenizer_->decode(held, options_);
  // A first "▁" gives no text yet decides whether the next one does.
  if (fresh.empty()) return {};
  ids_.erase(ids_.begin(), ids_.begin() + static_cast<std::ptrdiff_t>(known_));
  known_ = ids_.size();
  shown_ = tokenizer_->decode(ids_, options_);
  return fresh;
}

std::string StreamDecoder::finish() {
  const std::string text = tokenizer_->decode(ids_, options_);
  std::string rest = text.starts_with(shown_) ? text.substr(shown_.size()) : "";
  ids_.clear();
  known_ = 0;
  shown_.clear();
  tail_.clear();
  return rest;
}

}  // namespace nibble::text
