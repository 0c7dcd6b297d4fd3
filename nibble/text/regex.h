#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "nibble/text/aligned_text.h"

namespace nibble::text {

// A pattern of a tokenizer.json, compiled by PCRE2 (JIT where the machine has it). Such files are written for
// Oniguruma; its syntax and its meaning of \s, \w, \h, \p{Script}, ^, $ and (?m) are translated. Immutable, safe to
// share.
class Regex {
 public:
  // `where` names the file and place in errors. A pattern that is not valid or not translatable is a DataError.
  Regex(std::string_view pattern, std::string where);
  // Matches `text` itself.
  static Regex literal(std::string_view text, std::string where);

 private:
  friend class Matcher;
  struct Code;
  std::shared_ptr<const Code> code_;
};

// Finds the matches of a Regex one after the other. Holds scratch memory: one a thread, used for many subjects.
class Matcher {
 public:
  explicit Matcher(const Regex& regex);
  ~Matcher();
  Matcher(const Matcher&) = delete;
  Matcher& operator=(const Matcher&) = delete;

  // Starts over on `subject`, which must be valid UTF-8 and stay.
  void reset(std::string_view subject);
  // The next match; an empty one right after the last match is passed over, as Oniguruma's iterator in Rust does. A
  // match that takes too many steps is a DataError.
  std::optional<ByteSpan> next();

 private:
  bool search();

  struct Scratch;
  std::shared_ptr<const Regex::Code> code_;
  std::unique_ptr<Scratch> scratch_;
  std::string_view subject_;
  std::size_t at_ = 0;
  std::optional<std::size_t> last_end_;
};

// Whether PCRE2's tables are of Unicode 16 or later.
bool pcre2_knows_unicode_16();

// The PCRE2 pattern that means what `pattern` means to Oniguruma (its Unicode mode and default syntax).
std::string translate_oniguruma(std::string_view pattern, std::string_view where);

}  // namespace nibble::text
