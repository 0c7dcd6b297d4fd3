#include "nibble/text/aligned_text.h"

#include "nibble/text/utf8.h"

namespace nibble::text {

ByteSpan AlignedText::place(ByteSpan span) const {
  if (!owns_) return {base_ + span.begin, base_ + span.end};
  if (places_.empty()) return {};
  if (span.begin == span.end) {
    const std::uint32_t at = span.begin < places_.size() ? places_[span.begin].begin : places_.back().end;
    return {at, at};
  }
  return {places_[span.begin].begin, places_[span.end - 1].end};
}

AlignedText AlignedText::slice(ByteSpan span) const {
  const std::string_view part = text().substr(span.begin, span.end - span.begin);
  AlignedText out(part, base_ + span.begin, tracked_);
  if (!owns_) return out;
  out.owns_ = true;
  out.owned_ = std::string(part);
  if (tracked_) out.places_.assign(places_.begin() + span.begin, places_.begin() + span.end);
  return out;
}

void Rewriter::keep(std::uint32_t count) {
  text_.append(from_.text().substr(at_, count));
  if (from_.tracked_) {
    for (std::uint32_t i = at_; i < at_ + count; ++i) places_.push_back(from_.place({i, i + 1}));
  }
  at_ += count;
}

void Rewriter::replace(std::uint32_t count, std::string_view text) {
  text_.append(text);
  if (from_.tracked_) places_.insert(places_.end(), text.size(), from_.place({at_, at_ + count}));
  at_ += count;
}

AlignedText Rewriter::finish() {
  keep(from_.size() - at_);
  AlignedText out;
  out.owned_ = std::move(text_);
  out.places_ = std::move(places_);
  out.owns_ = true;
  out.base_ = from_.base_;
  out.tracked_ = from_.tracked_;
  return out;
}

AlignedText repaired_text(std::string_view text, bool tracked, std::size_t& replaced) {
  replaced = 0;
  const AlignedText given(text, 0, tracked);
  std::size_t valid = valid_utf8_prefix(text);
  if (valid == text.size()) return given;
  const std::string mark = to_utf8(replacement_character);
  Rewriter out(given);
  while (valid < text.size()) {
    out.keep(static_cast<std::uint32_t>(valid - out.position()));
    out.replace(static_cast<std::uint32_t>(-check_utf8(text, valid)), mark);
    ++replaced;
    valid = out.position() + valid_utf8_prefix(text.substr(out.position()));
  }
  return out.finish();
}

}  // namespace nibble::text
