#include "nibble/text/char_class.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>

#include "nibble/text/unicode_16.h"

namespace nibble::text {
namespace {

utf8proc_category_t category(char32_t code) { return utf8proc_category(static_cast<utf8proc_int32_t>(code)); }

constexpr bool within(char32_t code, char32_t first, char32_t last) { return code >= first && code <= last; }

struct Range {
  char32_t first, last;
};

// Punctuation that Unicode 8 does not know as such, whose tables `tokenizers` 0.23 tests it by; found by comparing the two.
constexpr auto later_punctuation = std::to_array<Range>({
    {0x061D, 0x061D}, {0x09FD, 0x09FD}, {0x0A76, 0x0A76}, {0x0C77, 0x0C77}, {0x0C84, 0x0C84},
    {0x1B7D, 0x1B7E}, {0x2E43, 0x2E4F}, {0x2E52, 0x2E5D}, {0x10EAD, 0x10EAD}, {0x10F55, 0x10F59},
    {0x10F86, 0x10F89}, {0x1144B, 0x1144F}, {0x1145A, 0x1145B}, {0x1145D, 0x1145D}, {0x11660, 0x1166C},
    {0x116B9, 0x116B9}, {0x1183B, 0x1183B}, {0x11944, 0x11946}, {0x119E2, 0x119E2}, {0x11A3F, 0x11A46},
    {0x11A9A, 0x11A9C}, {0x11A9E, 0x11AA2}, {0x11C41, 0x11C45}, {0x11C70, 0x11C71}, {0x11EF7, 0x11EF8},
    {0x11FFF, 0x11FFF}, {0x12FF1, 0x12FF2}, {0x16E97, 0x16E9A}, {0x16FE2, 0x16FE2}, {0x1E95E, 0x1E95F}});

bool is_later_punctuation(char32_t code) {
  const auto* range = std::lower_bound(later_punctuation.begin(), later_punctuation.end(), code, [](const Range& r, char32_t c) { return r.last < c; });
  return !later_category(code).empty() || (range != later_punctuation.end() && code >= range->first);
}

}  // namespace

bool is_whitespace(char32_t code) {
  if (code < 0x80) return code == ' ' || within(code, 0x09, 0x0D);
  return code == 0x85 || code == 0xA0 || code == 0x1680 || within(code, 0x2000, 0x200A) || code == 0x2028 ||
         code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

bool is_numeric(char32_t code) {
  if (code < 0x80) return within(code, '0', '9');
  const auto kind = category(code);
  if (within(code, 0x11DE0, 0x11DE9) || within(code, 0x16FF4, 0x16FF6)) return true;  // of Unicode 17
  return later_category(code).starts_with('N') || kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_NL || kind == UTF8PROC_CATEGORY_NO;
}

bool is_punctuation(char32_t code) {
  if (code < 0x80)
    return within(code, '!', '/') || within(code, ':', '@') || within(code, '[', '`') || within(code, '{', '~');
  const auto kind = category(code);
  if (code == 0x166D || code == 0x111C9) return true;  // in Unicode 8, not since
  return kind >= UTF8PROC_CATEGORY_PC && kind <= UTF8PROC_CATEGORY_PO && !is_later_punctuation(code);
}

bool is_mark(char32_t code) {
  const auto kind = category(code);
  return kind >= UTF8PROC_CATEGORY_MN && kind <= UTF8PROC_CATEGORY_ME;
}

bool is_word(char32_t code) {
  const std::string_view later = later_category(code);
  if (!later.empty()) return later[0] == 'L' || later[0] == 'M' || later == "Nd" || later == "Pc";
  const auto kind = category(code);
  if (kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO) return true;
  if (is_mark(code) || kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_NL || kind == UTF8PROC_CATEGORY_PC) {
    return true;
  }
  // Circled and squared letters are Alphabetic though symbols; the last two are the joiners.
  return within(code, 0x24B6, 0x24E9) || within(code, 0x1F130, 0x1F149) || within(code, 0x1F150, 0x1F169) ||
         within(code, 0x1F170, 0x1F189) || code == 0x200C || code == 0x200D;
}

}  // namespace nibble::text
