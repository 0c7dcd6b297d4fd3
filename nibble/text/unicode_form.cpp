#include "nibble/text/unicode_form.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/text/char_class.h"
#include "nibble/text/unicode_9.h"
#include "nibble/text/utf8.h"

namespace nibble::text {
namespace {

int form_options(UnicodeForm form) {
  int options = UTF8PROC_STABLE;
  const bool composed = form == UnicodeForm::nfc || form == UnicodeForm::nfkc;
  options |= composed ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == UnicodeForm::nfkc || form == UnicodeForm::nfkd) options |= UTF8PROC_COMPAT;
  return options;
}

int combining_class(utf8proc_int32_t code) {
  return is_later_than_unicode_9(static_cast<char32_t>(code)) ? 0 : utf8proc_get_property(code)->combining_class;
}

// A character's full decomposition; Unicode's longest has 18.
struct Parts {
  std::array<utf8proc_int32_t, 32> codes;
  utf8proc_ssize_t count;
};

// Normalizes a text block by block: a block starts at a character that can neither compose with nor move before what
// precedes it.
class FormWriter {
 public:
  FormWriter(const AlignedText& text, UnicodeForm form)
      : text_(text.text()), options_(form_options(form)), out_(text) {}

  // False where nothing changed.
  bool run() {
    bool changed = false;
    while (at_ < text_.size()) {
      skip_plain();
      if (at_ == text_.size()) break;
      const std::size_t end = block_end(at_);
      changed |= write_block(end);
      at_ = end;
    }
    return changed;
  }

  AlignedText finish() { return out_.finish(); }

 private:
  bool ascii(std::size_t at) const { return static_cast<unsigned char>(text_[at]) < 0x80; }

  // Passes over ASCII, except a last one that a mark may follow.
  void skip_plain() {
    const std::size_t start = at_;
    while (at_ < text_.size() && ascii(at_)) ++at_;
    if (at_ < text_.size() && at_ > start && !starts_block(at_)) --at_;
  }

  Parts decompose(char32_t code) const {
    Parts parts;
    if (is_later_than_unicode_9(code)) {
      parts.codes[0] = static_cast<utf8proc_int32_t>(code);
      parts.count = 1;
      return parts;
    }
    int last_class = 0;
    parts.count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(code), parts.codes.data(),
                                          static_cast<utf8proc_ssize_t>(parts.codes.size()),
                                          static_cast<utf8proc_option_t>(options_ | UTF8PROC_DECOMPOSE), &last_class);
    check(parts.count > 0 && parts.count <= static_cast<utf8proc_ssize_t>(parts.codes.size()), "normalizer",
          "U+{:04X} decomposes into {} characters; 1 to {} are expected.", static_cast<std::uint32_t>(code),
          parts.count, parts.codes.size());
    return parts;
  }

  bool starts_block(std::size_t at) const {
    if (ascii(at)) return true;
    const char32_t code = decode_utf8(text_, at).code;
    if (is_later_than_unicode_9(code)) return true;
    const auto first = decompose(code).codes[0];
    const bool joining_jamo = first >= 0x1160 && first <= 0x11FF;
    return !is_mark(static_cast<char32_t>(first)) && !joining_jamo && combining_class(first) == 0;
  }

  std::size_t block_end(std::size_t at) const {
    at += utf8_length(static_cast<unsigned char>(text_[at]));
    while (at < text_.size() && !starts_block(at)) at += utf8_length(static_cast<unsigned char>(text_[at]));
    return at;
  }

  bool write_block(std::size_t end) {
    const std::string_view block = text_.substr(at_, end - at_);
    normalize(block);
    if (result_ == block) return false;
    out_.keep(static_cast<std::uint32_t>(at_) - out_.position());
    out_.replace(static_cast<std::uint32_t>(block.size()), result_);
    return true;
  }

  // utf8proc's own routine orders marks in quadratic time, which a long run of them would make felt.
  void normalize(std::string_view block) {
    codes_.clear();
    for (std::size_t at = 0; at < block.size(); at += utf8_length(static_cast<unsigned char>(block[at]))) {
      const Parts parts = decompose(decode_utf8(block, at).code);
      codes_.insert(codes_.end(), parts.codes.begin(), parts.codes.begin() + parts.count);
    }
    order_marks();
    const auto count = utf8proc_normalize_utf32(codes_.data(), static_cast<utf8proc_ssize_t>(codes_.size()),
                                                static_cast<utf8proc_option_t>(options_));
    result_.clear();
    for (utf8proc_ssize_t i = 0; i < count; ++i) {
      append_utf8(result_, static_cast<char32_t>(codes_[static_cast<std::size_t>(i)]));
    }
  }

  void order_marks() {
    for (auto run = codes_.begin(); run != codes_.end();) {
      run = std::find_if(run, codes_.end(), [](auto code) { return combining_class(code) != 0; });
      const auto end = std::find_if(run, codes_.end(), [](auto code) { return combining_class(code) == 0; });
      std::stable_sort(run, end, [](auto a, auto b) { return combining_class(a) < combining_class(b); });
      run = end;
    }
  }

  std::string_view text_;
  int options_;
  Rewriter out_;
  std::size_t at_ = 0;
  std::vector<utf8proc_int32_t> codes_;
  std::string result_;
};

}  // namespace

void to_unicode_form(AlignedText& text, UnicodeForm form) {
  FormWriter writer(text, form);
  if (writer.run()) text = writer.finish();
}

}  // namespace nibble::text
