#include "nibble/text/normalizer.h"

#include <utf8proc.h>

#include "nibble/base/error.h"
#include "nibble/text/byte_level.h"
#include "nibble/text/char_class.h"
#include "nibble/text/json_pieces.h"
#include "nibble/text/regex.h"
#include "nibble/text/unicode_9.h"
#include "nibble/text/unicode_form.h"
#include "nibble/text/utf8.h"

namespace nibble::text {
namespace {

class Sequence : public Normalizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Normalizer>> steps) : steps_(std::move(steps)) {}
  void apply(AlignedText& text) const override {
    for (const auto& step : steps_) step->apply(text);
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> steps_;
};

class FormStep : public Normalizer {
 public:
  explicit FormStep(UnicodeForm form) : form_(form) {}
  void apply(AlignedText& text) const override { to_unicode_form(text, form_); }

 private:
  UnicodeForm form_;
};

// Calls `edit(rewriter, char)` for each character; it must take in exactly that character's bytes.
template <typename Edit>
void edit_chars(AlignedText& text, Edit edit) {
  Rewriter out(text);
  const std::string_view from = text.text();
  while (out.position() < from.size()) edit(out, decode_utf8(from, out.position()));
  text = out.finish();
}

class Lowercase : public Normalizer {
 public:
  void apply(AlignedText& text) const override {
    edit_chars(text, [](Rewriter& out, Utf8Char c) {
      const auto lower = static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c.code)));
      if (c.code == 0x130) {
        out.replace(c.length, "i\xCC\x87");  // the one character whose lower case is two
      } else if (lower == c.code) {
        out.keep(c.length);
      } else {
        out.replace(c.length, to_utf8(lower));
      }
    });
  }
};

class StripAccents : public Normalizer {
 public:
  void apply(AlignedText& text) const override {
    edit_chars(text, [](Rewriter& out, Utf8Char c) {
      const bool was_mark = c.code == 0x1CF2 || c.code == 0x1CF3;  // in Unicode 9, not since
      const bool mark = was_mark || (is_mark(c.code) && !is_later_than_unicode_9(c.code));
      mark ? out.drop(c.length) : out.keep(c.length);
    });
  }
};

class ByteLevel : public Normalizer {
 public:
  void apply(AlignedText& text) const override {
    const std::string from(text.text());
    Rewriter out(text);
    for (const char byte : from) out.replace(1, byte_level_char(static_cast<unsigned char>(byte)));
    text = out.finish();
  }
};

class Strip : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  void apply(AlignedText& text) const override {
    const std::string_view all = text.text();
    std::size_t begin = 0;
    std::size_t end = all.size();
    while (left_ && begin < end) {
      const Utf8Char c = decode_utf8(all, begin);
      if (!is_whitespace(c.code)) break;
      begin += c.length;
    }
    while (right_ && begin < end) {
      std::size_t last = end - 1;
      while ((static_cast<unsigned char>(all[last]) & 0xC0) == 0x80) --last;
      if (!is_whitespace(decode_utf8(all, last).code)) break;
      end = last;
    }
    if (begin == 0 && end == all.size()) return;
    Rewriter out(text);
    out.drop(static_cast<std::uint32_t>(begin));
    out.keep(static_cast<std::uint32_t>(end - begin));
    out.drop(static_cast<std::uint32_t>(all.size() - end));
    text = out.finish();
  }

 private:
  bool left_;
  bool right_;
};

class Prepend : public Normalizer {
 public:
  explicit Prepend(std::string text) : text_(std::move(text)) {}
  void apply(AlignedText& text) const override {
    if (text.size() == 0) return;
    Rewriter out(text);
    out.replace(0, text_);
    text = out.finish();
  }

 private:
  std::string text_;
};

class Replace : public Normalizer {
 public:
  Replace(Regex pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void apply(AlignedText& text) const override {
    Matcher matcher(pattern_);
    matcher.reset(text.text());
    auto match = matcher.next();
    if (!match) return;
    Rewriter out(text);
    for (; match; match = matcher.next()) {
      out.keep(match->begin - out.position());
      out.replace(match->end - match->begin, content_);
    }
    text = out.finish();
  }

 private:
  Regex pattern_;
  std::string content_;
};

// By far the most common pattern is a plain string, for which memchr beats a regex.
class ReplaceString : public Normalizer {
 public:
  ReplaceString(std::string pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void apply(AlignedText& text) const override {
    const std::string_view all = text.text();
    std::size_t found = all.find(pattern_);
    if (found == std::string_view::npos) return;
    Rewriter out(text);
    for (; found != std::string_view::npos; found = all.find(pattern_, out.position())) {
      out.keep(static_cast<std::uint32_t>(found) - out.position());
      out.replace(static_cast<std::uint32_t>(pattern_.size()), content_);
    }
    text = out.finish();
  }

 private:
  std::string pattern_;
  std::string content_;
};

std::unique_ptr<Normalizer> make_sequence(const JsonObject& json) {
  std::vector<std::unique_ptr<Normalizer>> steps;
  for (const JsonObject& step : read_objects(json, "normalizers")) steps.push_back(make_normalizer(step));
  return std::make_unique<Sequence>(std::move(steps));
}

std::unique_ptr<Normalizer> make_replace(const JsonObject& json) {
  const PatternText pattern = read_pattern(json);
  std::string content = json.string("content");
  if (pattern.is_regex) return std::make_unique<Replace>(Regex(pattern.text, json.origin()), std::move(content));
  check<DataError>(!pattern.text.empty(), json.origin(), "The string to replace is empty.");
  return std::make_unique<ReplaceString>(pattern.text, std::move(content));
}

}  // namespace

std::unique_ptr<Normalizer> make_normalizer(const JsonObject& json) {
  const std::string type = json.string("type");
  if (type == "Sequence") return make_sequence(json);
  if (type == "NFC") return std::make_unique<FormStep>(UnicodeForm::nfc);
  if (type == "NFD") return std::make_unique<FormStep>(UnicodeForm::nfd);
  if (type == "NFKC") return std::make_unique<FormStep>(UnicodeForm::nfkc);
  if (type == "NFKD") return std::make_unique<FormStep>(UnicodeForm::nfkd);
  if (type == "Lowercase") return std::make_unique<Lowercase>();
  if (type == "StripAccents") return std::make_unique<StripAccents>();
  if (type == "ByteLevel") return std::make_unique<ByteLevel>();
  if (type == "Strip") return std::make_unique<Strip>(json.boolean("strip_left"), json.boolean("strip_right"));
  if (type == "Prepend") return std::make_unique<Prepend>(json.string("prepend"));
  if (type == "Replace") return make_replace(json);
  fail<DataError>(json.origin(),
                  "The normalizer type \"{}\" is not supported; Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Strip, "
                  "StripAccents, Replace, Prepend and ByteLevel are.",
                  type);
}

}  // namespace nibble::text
