#include "nibble/text/pre_tokenizer.h"

#include <functional>

#include "nibble/base/error.h"
#include "nibble/text/byte_level.h"
#include "nibble/text/char_class.h"
#include "nibble/text/json_pieces.h"
#include "nibble/text/regex.h"
#include "nibble/text/splitting.h"
#include "nibble/text/utf8.h"

namespace nibble::text {
namespace {

// Splits each piece at what `find(piece, parts)` reports; spans of parts are relative to the piece.
template <typename Find>
void split_pieces(Pieces& pieces, SplitBehavior behavior, Find find) {
  std::vector<ByteSpan> out;
  out.reserve(pieces.spans.size());
  std::vector<SplitPart> parts;
  const std::string_view text = pieces.text.text();
  for (const ByteSpan span : pieces.spans) {
    parts.clear();
    find(text.substr(span.begin, span.end - span.begin), parts);
    for (SplitPart& part : parts) {
      part.span.begin += span.begin;
      part.span.end += span.begin;
    }
    join_parts(parts, behavior, out);
  }
  pieces.spans = std::move(out);
}

// Splits at the matches of a pattern, or where `invert` is set at what lies between them.
class Split : public PreTokenizer {
 public:
  Split(Regex pattern, SplitBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

  void apply(Pieces& pieces) const override {
    Matcher matcher(pattern_);
    split_pieces(pieces, behavior_, [&](std::string_view piece, std::vector<SplitPart>& parts) {
      std::uint32_t at = 0;
      matcher.reset(piece);
      while (const auto match = matcher.next()) {
        if (match->begin > at) parts.push_back({{at, match->begin}, invert_});
        parts.push_back({*match, !invert_});
        at = match->end;
      }
      if (at < piece.size()) parts.push_back({{at, static_cast<std::uint32_t>(piece.size())}, invert_});
    });
  }

 private:
  Regex pattern_;
  SplitBehavior behavior_;
  bool invert_;
};

// Splits at the characters for which `is_match` holds.
class SplitAtChars : public PreTokenizer {
 public:
  SplitAtChars(std::function<bool(char32_t)> is_match, SplitBehavior behavior)
      : is_match_(std::move(is_match)), behavior_(behavior) {}

  void apply(Pieces& pieces) const override {
    split_pieces(pieces, behavior_, [&](std::string_view piece, std::vector<SplitPart>& parts) {
      std::uint32_t unmatched = 0;
      for (std::uint32_t at = 0; at < piece.size();) {
        const Utf8Char c = decode_utf8(piece, at);
        if (is_match_(c.code)) {
          if (at > unmatched) parts.push_back({{unmatched, at}, false});
          parts.push_back({{at, at + c.length}, true});
          unmatched = at + c.length;
        }
        at += c.length;
      }
      const auto end = static_cast<std::uint32_t>(piece.size());
      if (end > unmatched) parts.push_back({{unmatched, end}, false});
    });
  }

 private:
  std::function<bool(char32_t)> is_match_;
  SplitBehavior behavior_;
};

// Rewrites each piece by `edit(rewriter, span)`, which must take in all of it.
template <typename Edit>
void rewrite_pieces(Pieces& pieces, Edit edit) {
  Rewriter out(pieces.text);
  for (ByteSpan& span : pieces.spans) {
    out.drop(span.begin - out.position());
    const std::uint32_t begin = out.size();
    edit(out, span);
    span = {begin, out.size()};
  }
  out.drop(pieces.text.size() - out.position());
  pieces.text = out.finish();
}

class PrefixSpace : public PreTokenizer {
 public:
  void apply(Pieces& pieces) const override {
    const std::string_view text = pieces.text.text();
    rewrite_pieces(pieces, [&](Rewriter& out, ByteSpan span) {
      if (text[span.begin] != ' ') out.replace(0, " ");
      out.keep(span.end - span.begin);
    });
  }
};

// Writes bytes in the byte-level alphabet; needed only where another step follows.
class ToByteLevel : public PreTokenizer {
 public:
  void apply(Pieces& pieces) const override {
    const std::string_view text = pieces.text.text();
    rewrite_pieces(pieces, [&](Rewriter& out, ByteSpan span) {
      for (std::uint32_t at = span.begin; at < span.end; ++at) {
        out.replace(1, byte_level_char(static_cast<unsigned char>(text[at])));
      }
    });
  }
};

enum class PrependScheme { always, first, never };

// SentencePiece's manner: spaces become `mark`, which also starts a text, and words start at marks.
class Metaspace : public PreTokenizer {
 public:
  Metaspace(std::string mark, PrependScheme scheme, bool split)
      : mark_(std::move(mark)), scheme_(scheme), split_(split) {}

  void apply(Pieces& pieces) const override {
    const std::string_view text = pieces.text.text();
    const bool at_start = pieces.text.at_start();
    rewrite_pieces(pieces, [&](Rewriter& out, ByteSpan span) {
      const std::string_view piece = text.substr(span.begin, span.end - span.begin);
      const bool wanted =
          scheme_ == PrependScheme::always || (scheme_ == PrependScheme::first && at_start && span.begin == 0);
      if (wanted && piece[0] != ' ' && !piece.starts_with(mark_)) out.replace(0, mark_);
      for (std::size_t space = piece.find(' '); space != std::string_view::npos; space = piece.find(' ', space + 1)) {
        out.keep(span.begin + static_cast<std::uint32_t>(space) - out.position());
        out.replace(1, mark_);
      }
      out.keep(span.end - out.position());
    });
    if (!split_) return;
    split_pieces(pieces, SplitBehavior::merged_with_next, [&](std::string_view piece, std::vector<SplitPart>& parts) {
      std::uint32_t at = 0;
      const auto length = static_cast<std::uint32_t>(mark_.size());
      for (std::size_t found = piece.find(mark_); found != std::string_view::npos; found = piece.find(mark_, at)) {
        const auto begin = static_cast<std::uint32_t>(found);
        if (begin > at) parts.push_back({{at, begin}, false});
        parts.push_back({{begin, begin + length}, true});
        at = begin + length;
      }
      if (at < piece.size()) parts.push_back({{at, static_cast<std::uint32_t>(piece.size())}, false});
    });
  }

 private:
  std::string mark_;
  PrependScheme scheme_;
  bool split_;
};

SplitBehavior read_behavior(const JsonObject& json, std::string_view otherwise) {
  const std::string name = json.string("behavior", otherwise);
  if (name == "Removed") return SplitBehavior::removed;
  if (name == "Isolated") return SplitBehavior::isolated;
  if (name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
  if (name == "MergedWithNext") return SplitBehavior::merged_with_next;
  if (name == "Contiguous") return SplitBehavior::contiguous;
  json.fail_key("behavior", "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
}

std::unique_ptr<PreTokenizer> make_split(const JsonObject& json) {
  const PatternText pattern = read_pattern(json);
  Regex regex = pattern.is_regex ? Regex(pattern.text, json.origin()) : Regex::literal(pattern.text, json.origin());
  return std::make_unique<Split>(std::move(regex), read_behavior(json, ""), json.boolean("invert", false));
}

std::unique_ptr<PreTokenizer> make_metaspace(const JsonObject& json) {
  std::string scheme = json.string("prepend_scheme", "always");
  // The older key says the same.
  if (!json.boolean("add_prefix_space", true)) scheme = "never";
  if (scheme != "always" && scheme != "first" && scheme != "never") {
    json.fail_key("prepend_scheme", "always, first or never");
  }
  const auto kind = scheme == "always"  ? PrependScheme::always
                    : scheme == "first" ? PrependScheme::first
                                        : PrependScheme::never;
  return std::make_unique<Metaspace>(read_char(json, "replacement"), kind, json.boolean("split", true));
}

void add_byte_level(const JsonObject& json, PreTokenizers& out) {
  // GPT-2's own pattern (Radford et al. 2019, encoder.py).
  constexpr std::string_view words = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
  if (json.boolean("add_prefix_space", true)) out.steps.push_back(std::make_unique<PrefixSpace>());
  if (json.boolean("use_regex", true)) {
    out.steps.push_back(std::make_unique<Split>(Regex(words, json.origin()), SplitBehavior::isolated, false));
  }
  out.byte_level = true;
}

}  // namespace

void add_pre_tokenizers(const JsonObject& json, PreTokenizers& out) {
  const std::string type = json.string("type");
  if (type == "Sequence") {
    for (const JsonObject& step : read_objects(json, "pretokenizers")) add_pre_tokenizers(step, out);
    return;
  }
  if (out.byte_level) out.steps.push_back(std::make_unique<ToByteLevel>());
  out.byte_level = false;
  const auto add = [&](auto step) { out.steps.push_back(std::move(step)); };
  const auto at_chars = [&](bool (*test)(char32_t), SplitBehavior behavior) {
    add(std::make_unique<SplitAtChars>(test, behavior));
  };
  if (type == "ByteLevel") return add_byte_level(json, out);
  if (type == "Split") return add(make_split(json));
  if (type == "Metaspace") return add(make_metaspace(json));
  if (type == "Punctuation") return at_chars(is_punctuation, read_behavior(json, "Isolated"));
  if (type == "WhitespaceSplit") return at_chars(is_whitespace, SplitBehavior::removed);
  if (type == "Digits") {
    const bool each = json.boolean("individual_digits", false);
    return at_chars(is_numeric, each ? SplitBehavior::isolated : SplitBehavior::contiguous);
  }
  if (type == "Whitespace") {
    return add(std::make_unique<Split>(Regex(R"(\w+|[^\w\s]+)", json.origin()), SplitBehavior::removed, true));
  }
  if (type == "CharDelimiterSplit") {
    const char32_t delimiter = decode_utf8(read_char(json, "delimiter"), 0).code;
    return add(
        std::make_unique<SplitAtChars>([delimiter](char32_t c) { return c == delimiter; }, SplitBehavior::removed));
  }
  fail<DataError>(json.origin(),
                  "The pre-tokenizer type \"{}\" is not supported; Sequence, Split, ByteLevel, Metaspace, Digits, "
                  "Punctuation, Whitespace, WhitespaceSplit and CharDelimiterSplit are.",
                  type);
}

}  // namespace nibble::text
