#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::text {

// Bytes [begin, end) of a text.
struct ByteSpan {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;

  bool operator==(const ByteSpan&) const = default;
};

// A text together with the place in the caller's text that each of its bytes stands for. An untouched text is a view of
// the caller's and keeps no table. Places are kept only where `tracked`: they cost eight bytes a byte once it changed.
class AlignedText {
 public:
  AlignedText() = default;
  // `text` lies at byte `base` of the caller's text and must outlive this object.
  AlignedText(std::string_view text, std::uint32_t base, bool tracked) : view_(text), base_(base), tracked_(tracked) {}

  std::string_view text() const { return owns_ ? std::string_view(owned_) : view_; }
  std::uint32_t size() const { return static_cast<std::uint32_t>(text().size()); }
  bool at_start() const { return base_ == 0; }
  // The bytes of the caller's text that `span` of this text stands for.
  ByteSpan place(ByteSpan span) const;
  // Part of this text, which must outlive the result.
  AlignedText slice(ByteSpan span) const;

 private:
  friend class Rewriter;

  std::string_view view_;
  std::string owned_;
  std::vector<ByteSpan> places_;  // of each byte of owned_, where tracked
  std::uint32_t base_ = 0;
  bool owns_ = false;
  bool tracked_ = false;
};

// Makes a new AlignedText out of an old one, from left to right.
class Rewriter {
 public:
  explicit Rewriter(const AlignedText& from) : from_(from) {}

  // Takes over the next `count` bytes.
  void keep(std::uint32_t count);
  // Puts `text` in the place of the next `count` bytes: each of its bytes stands for all of them. With a count of 0 it
  // is inserted, and stands for nothing.
  void replace(std::uint32_t count, std::string_view text);
  void drop(std::uint32_t count) { at_ += count; }
  // How far the old text has been read, and how long the new one has become.
  std::uint32_t position() const { return at_; }
  std::uint32_t size() const { return static_cast<std::uint32_t>(text_.size()); }
  // Keeps what is left.
  AlignedText finish();

 private:
  const AlignedText& from_;
  std::uint32_t at_ = 0;
  std::string text_;
  std::vector<ByteSpan> places_;
};

// `text` with its broken UTF-8 replaced by U+FFFD; `replaced` gets the number of broken sequences.
AlignedText repaired_text(std::string_view text, bool tracked, std::size_t& replaced);

}  // namespace nibble::text
