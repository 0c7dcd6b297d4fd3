// Translates Oniguruma's syntax to PCRE2's where the two differ in what they match.

#include <algorithm>
#include <array>
#include <cctype>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/text/regex.h"
#include "nibble/text/unicode_16.h"
#include "nibble/text/utf8.h"

namespace nibble::text {
namespace {

// The later characters of a category, or of all that begin with its letter, as they stand inside a class; empty where PCRE2 knows them.
std::string later_of(std::string_view category) {
  if (pcre2_knows_unicode_16()) return "";
  std::string ranges;
  for (const LaterCharacters& later : later_characters()) {
    const bool cased = later.category == "Lu" || later.category == "Ll" || later.category == "Lt";
    const bool fits = category == "L&" ? cased : category == "Xan" ? later.category[0] == 'L' || later.category[0] == 'N' : later.category.starts_with(category);
    if (fits) ranges += fmt::format("\\x{{{:X}}}-\\x{{{:X}}}", static_cast<std::uint32_t>(later.first), static_cast<std::uint32_t>(later.last));
  }
  return ranges;
}

// PCRE2's own \s and \w differ under PCRE2_UCP (U+180E, marks), and its \h is blanks where Oniguruma's is hex digits.
// Each text can stand inside a class.
struct Shorthand {
  char letter;
  std::string plain;
  std::string_view negated;  // empty where it has no form inside a class
};
const std::array<Shorthand, 3>& shorthands() {
  static const std::array all{
      Shorthand{'s', "\\p{White_Space}", "\\P{White_Space}"},
      Shorthand{'w', "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}" + later_of("L") + later_of("M") + later_of("Nd") + later_of("Pc"), ""},
      Shorthand{'h', "0-9a-fA-F", ""},
  };
  return all;
}

// Oniguruma's long names of general categories, which PCRE2 lacks.
struct LongName {
  std::string_view name;
  std::string_view category;
};
constexpr std::array long_names{
    LongName{"letter", "L"},
    LongName{"uppercaseletter", "Lu"},
    LongName{"lowercaseletter", "Ll"},
    LongName{"titlecaseletter", "Lt"},
    LongName{"modifierletter", "Lm"},
    LongName{"otherletter", "Lo"},
    LongName{"mark", "M"},
    LongName{"nonspacingmark", "Mn"},
    LongName{"spacingmark", "Mc"},
    LongName{"enclosingmark", "Me"},
    LongName{"number", "N"},
    LongName{"decimalnumber", "Nd"},
    LongName{"letternumber", "Nl"},
    LongName{"othernumber", "No"},
    LongName{"punctuation", "P"},
    LongName{"connectorpunctuation", "Pc"},
    LongName{"dashpunctuation", "Pd"},
    LongName{"openpunctuation", "Ps"},
    LongName{"closepunctuation", "Pe"},
    LongName{"initialpunctuation", "Pi"},
    LongName{"finalpunctuation", "Pf"},
    LongName{"otherpunctuation", "Po"},
    LongName{"symbol", "S"},
    LongName{"mathsymbol", "Sm"},
    LongName{"currencysymbol", "Sc"},
    LongName{"modifiersymbol", "Sk"},
    LongName{"othersymbol", "So"},
    LongName{"separator", "Z"},
    LongName{"spaceseparator", "Zs"},
    LongName{"lineseparator", "Zl"},
    LongName{"paragraphseparator", "Zp"},
    LongName{"other", "C"},
    LongName{"control", "Cc"},
    LongName{"format", "Cf"},
    LongName{"unassigned", "Cn"},
    LongName{"privateuse", "Co"},
    LongName{"surrogate", "Cs"},
    LongName{"alnum", "Xan"},
    LongName{"space", "White_Space"},
    LongName{"digit", "Nd"},
};

constexpr std::array properties{"alphabetic", "alpha", "whitespace", "wspace", "uppercase",   "upper",
                                "lowercase",  "lower", "emoji",      "any",    "ideographic", "math"};

bool is_category(std::string_view name) {
  constexpr std::string_view seconds[] = {"", "&", "lmotu", "cen", "dlo", "cdefios", "ckmo", "lps", "cfnos"};
  const std::size_t major = std::string_view("?&LMNPSZC").find(name.empty() ? '\0' : name[0]);
  if (major == std::string_view::npos || major < 2) return false;
  return name.size() == 1 || (name.size() == 2 && seconds[major].find(name[1]) != std::string_view::npos);
}

class Translator {
 public:
  Translator(std::string_view pattern, std::string_view where) : in_(pattern), where_(where) {}

  std::string run() {
    while (at_ < in_.size()) step();
    return std::move(out_);
  }

 private:
  bool next_is(std::string_view text) const { return in_.substr(at_).starts_with(text); }

  void copy(std::size_t count) {
    out_.append(in_.substr(at_, count));
    at_ += count;
  }

  [[noreturn]] void refuse(std::string_view what) const {
    fail<DataError>(where_, "The pattern \"{}\" uses {}, which is not supported.", in_.substr(0, 120), what);
  }

  // One atom, group mark or quantifier outside a class. `atom_` is where the last atom starts in the output.
  void step() {
    switch (in_[at_]) {
      case '\\': atom_ = out_.size(); return escape(false);
      case '[': atom_ = out_.size(); return char_class();
      case '(': return open_group();
      case ')':
        if (groups_.empty()) refuse("a closing parenthesis without an opening one");
        atom_ = groups_.back();
        groups_.pop_back();
        return copy(1);
      case '{': return interval();
      case '?':
      case '*':
      case '+':
      case '|': return copy(1);
      default:
        atom_ = out_.size();
        return copy(std::min<std::size_t>(utf8_length(static_cast<unsigned char>(in_[at_])), in_.size() - at_));
    }
  }

  void open_group() {
    groups_.push_back(out_.size());
    copy(1);
    if (!next_is("?")) return;
    copy(1);
    // Option letters: Oniguruma's m is PCRE2's s.
    while (at_ < in_.size() && (in_[at_] == 'i' || in_[at_] == 'm' || in_[at_] == 'x' || in_[at_] == '-')) {
      out_.push_back(in_[at_] == 'm' ? 's' : in_[at_]);
      ++at_;
    }
  }

  // {n}, {n,}, {n,m} and {,m}. A plus behind it repeats it again; PCRE2 would read a possessive interval.
  void interval() {
    const std::size_t close = in_.find('}', at_);
    const std::string_view body = close == std::string_view::npos ? "" : in_.substr(at_ + 1, close - at_ - 1);
    const bool counts = body.find_first_not_of("0123456789,") == std::string_view::npos && !body.empty() &&
                        body != "," && std::count(body.begin(), body.end(), ',') <= 1;
    if (!counts) {
      atom_ = out_.size();
      out_.append("\\{");
      ++at_;
      return;
    }
    out_.append(body[0] == ',' ? "{0" : "{").append(body).push_back('}');
    at_ = close + 1;
    if (!next_is("+")) return;
    out_.insert(atom_, "(?:");
    out_.append(")+");
    ++at_;
  }

  void escape(bool in_class) {
    if (at_ + 1 >= in_.size()) refuse("a backslash at its end");
    const char letter = in_[at_ + 1];
    const char small = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
    if (small == 'p') return property(in_class);
    if (letter == 'u') return code_point();
    const auto* found = std::find_if(shorthands().begin(), shorthands().end(), [&](auto& s) { return s.letter == small; });
    if (found == shorthands().end()) return copy(2);
    at_ += 2;
    if (letter == small) {
      out_.append(in_class ? found->plain : fmt::format("[{}]", found->plain));
    } else if (!in_class) {
      out_.append(fmt::format("[^{}]", found->plain));
    } else {
      if (found->negated.empty()) refuse(fmt::format("\\{} inside a class", letter));
      out_.append(found->negated);
    }
  }

  void code_point() {
    const std::string_view digits = in_.substr(std::min(at_ + 2, in_.size()), 4);
    if (digits.size() != 4 || digits.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos) {
      refuse("\\u without four hex digits");
    }
    out_.append(fmt::format("\\x{{{}}}", digits));
    at_ += 6;
  }

  void property(bool in_class) {
    const std::size_t close = in_.find('}', at_);
    if (at_ + 2 >= in_.size() || in_[at_ + 2] != '{' || close == std::string_view::npos) return copy(2);
    std::string_view name = in_.substr(at_ + 3, close - at_ - 3);
    bool negated = in_[at_ + 1] == 'P';
    if (name.starts_with("^")) {
      negated = !negated;
      name.remove_prefix(1);
    }
    std::string plain;
    for (const char c : name) {
      if (c != ' ' && c != '_' && c != '-')
        plain.push_back(static_cast<char>(std::tolower(static_cast<unsigned char>(c))));
    }
    at_ = close + 1;
    if (plain == "word" && !negated) {
      out_.append(in_class ? shorthands()[1].plain : fmt::format("[{}]", shorthands()[1].plain));
      return;
    }
    const std::string pcre2_name = property_name(name, plain);
    const std::string later = negated && in_class ? "" : later_of_property(pcre2_name);
    const std::string property = fmt::format("\\{}{{{}}}", negated && later.empty() ? 'P' : 'p', pcre2_name);
    out_.append(later.empty() ? property : in_class ? property + later : fmt::format("[{}{}{}]", negated ? "^" : "", property, later));
  }

  // Of general categories. What was not assigned before is not \p{Cn} any more, which no tokenizer asks for.
  static std::string later_of_property(std::string_view name) {
    return is_category(name) || name == "Xan" ? later_of(name) : "";
  }

  // A bare script name takes in Script_Extensions in PCRE2; Oniguruma means Script alone.
  static std::string property_name(std::string_view name, std::string_view plain) {
    if (is_category(name)) return std::string(name);
    const auto* found = std::find_if(long_names.begin(), long_names.end(), [&](auto& n) { return n.name == plain; });
    if (found != long_names.end()) return std::string(found->category);
    if (std::find(properties.begin(), properties.end(), plain) != properties.end()) return std::string(name);
    return fmt::format("sc:{}", name);
  }

  void char_class() {
    copy(1);
    if (next_is("^")) copy(1);
    if (next_is("]")) copy(1);
    while (at_ < in_.size() && in_[at_] != ']') {
      if (in_[at_] == '\\') {
        escape(true);
      } else if (next_is("[:")) {
        const std::size_t close = in_.find(":]", at_);
        if (close == std::string_view::npos) refuse("an open [: class");
        copy(close + 2 - at_);
      } else if (in_[at_] == '[') {
        refuse("a class inside a class");
      } else if (next_is("&&")) {
        refuse("an intersection of classes (&&)");
      } else {
        copy(1);
      }
    }
    if (at_ == in_.size()) refuse("a class that is not closed");
    copy(1);
  }

  std::string_view in_;
  std::string_view where_;
  std::string out_;
  std::size_t at_ = 0;
  std::size_t atom_ = 0;
  std::vector<std::size_t> groups_;
};

}  // namespace

std::string translate_oniguruma(std::string_view pattern, std::string_view where) {
  return Translator(pattern, where).run();
}

}  // namespace nibble::text
