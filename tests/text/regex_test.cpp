#include "nibble/text/regex.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/text/char_class.h"
#include "nibble/text/splitting.h"

namespace nibble::text::regex_test {
namespace {

std::vector<std::string> matches(const std::string& pattern, const std::string& text) {
  const Regex regex(pattern, "test");
  Matcher matcher(regex);
  matcher.reset(text);
  std::vector<std::string> out;
  while (const auto match = matcher.next()) out.push_back(text.substr(match->begin, match->end - match->begin));
  return out;
}

using Strings = std::vector<std::string>;

// What Oniguruma finds; PCRE2 by itself would differ in each.
TEST(Regex, MeansWhatOnigurumaMeans) {
  EXPECT_EQ(matches(R"(\s)", "a\u180eb\u0085c\u3000"), (Strings{"\u0085", "\u3000"})) << "U+180E is no white space";
  EXPECT_EQ(matches(R"([^\s]+)", "a\u180eb c"), (Strings{"a\u180eb", "c"}));
  EXPECT_EQ(matches(R"(\w+)", "a\u0301b \u203f!"), (Strings{"a\u0301b", "\u203f"})) << "marks and connectors are words";
  EXPECT_EQ(matches(R"(\W+)", "a\u0301-b"), (Strings{"-"}));
  EXPECT_EQ(matches(R"(\h+)", "xyz 09afAF g"), (Strings{"09afAF"})) << "hex digits";
  EXPECT_EQ(matches(R"(\p{Han}+)", "\u6f22\u3001\u5b57"), (Strings{"\u6f22", "\u5b57"})) << "the script alone";
  EXPECT_EQ(matches(R"(\p{^Lu}+)", "ABcdE"), (Strings{"cd"}));
  EXPECT_EQ(matches(R"(\p{Letter}+)", "ab1"), (Strings{"ab"}));
  EXPECT_EQ(matches(R"(^a$)", "a\nba\na"), (Strings{"a", "a"})) << "every line";
  EXPECT_EQ(matches(R"(a.b|(?m:c.d))", "a\nb c\nd"), (Strings{"c\nd"}));
  EXPECT_EQ(matches(R"(\p{N}{1,2}+)", "12345"), (Strings{"12345"})) << "no possessive interval";
  EXPECT_EQ(matches(R"(a{,2}b)", "aaab"), (Strings{"aab"}));
  EXPECT_EQ(matches(R"(\u00e9+)", "\u00e9\u00e9"), (Strings{"\u00e9\u00e9"}));
  EXPECT_EQ(matches(R"((?i:'s))", "'S '\u017f"), (Strings{"'S", "'\u017f"}));
}

// U+2EBF0 (a Han letter of 15.1), U+10D50 and U+10D70 (Garay's capital and small letters), U+10D40 (its digit), U+11F02 (Kawi, 15), U+1E5FF
// (punctuation) and U+1CEF0 (nothing yet).
TEST(Regex, KnowsTheCharactersOfUnicode16) {
  EXPECT_EQ(matches(R"(\p{L}+)", "a\U0002ebf0\U00010d50\U00010d40"), (Strings{"a\U0002ebf0\U00010d50"}));
  EXPECT_EQ(matches(R"([^\p{L}\p{N}]+)", "\U0002ebf0!\U00010d40\U0001e5ff\U0001cef0"), (Strings{"!", "\U0001e5ff\U0001cef0"}));
  EXPECT_EQ(matches(R"(\p{Lu}\p{Ll})", "\U00010d50\U00010d70"), (Strings{"\U00010d50\U00010d70"}));
  EXPECT_EQ(matches(R"(\P{L}+)", "a\U0002ebf0\U00010d40"), (Strings{"\U00010d40"}));
  EXPECT_EQ(matches(R"(\p{^Letter}+)", "\U0002ebf0-"), (Strings{"-"}));
  EXPECT_EQ(matches(R"(\p{P}|\p{Nd})", "\U0001e5ff\U00010d40"), (Strings{"\U0001e5ff", "\U00010d40"}));
  EXPECT_EQ(matches(R"(\w+)", "a\U0002ebf0\U0001e5ff"), (Strings{"a\U0002ebf0"}));
}

TEST(CharClass, IsThatOfTokenizers) {
  EXPECT_TRUE(is_numeric(0x10D40));
  EXPECT_TRUE(is_numeric(0x16FF4)) << "of Unicode 17";
  EXPECT_FALSE(is_punctuation(0x1E5FF)) << "tested by Unicode 8";
  EXPECT_FALSE(is_punctuation(0x2E52));
  EXPECT_TRUE(is_punctuation(0x166D));
  EXPECT_TRUE(is_punctuation(0x2E42));
  EXPECT_TRUE(is_word(0x2EBF0));
  EXPECT_FALSE(is_numeric(0x10D50));
  EXPECT_FALSE(is_word(0x1CEF0));
}

TEST(Regex, PassesOverEmptyMatchesAsRustDoes) {
  EXPECT_EQ(matches("b*", "abbc"), (Strings{"", "bb", ""}));
  EXPECT_EQ(matches("(?=\u4f60)", "\u4f60\u4f60"), (Strings{"", ""}));
  EXPECT_EQ(matches("x*", ""), (Strings{""}));
}

TEST(Regex, LiteralsAreTakenAsTheyAre) {
  const std::string text = R"(a.b|c*(d)[e]{f}\g^$?+)";
  Matcher matcher(Regex::literal(text, "test"));
  const std::string subject = "x" + text;
  matcher.reset(subject);
  EXPECT_EQ(matcher.next(), (ByteSpan{1, static_cast<std::uint32_t>(1 + text.size())}));
}

TEST(Regex, LongMatchesHaveRoom) {
  const std::string text(3'000'000, ' ');
  EXPECT_EQ(matches(R"(\s+(?!\S)|\s+)", text + "x"), (Strings{text.substr(1), " "}));
  EXPECT_EQ(matches(R"((?:a|b)+)", std::string(20'000, 'a')).size(), 1u);
}

Strings split(SplitBehavior behavior) {
  // "a--b-": matches are the hyphens.
  const std::string text = "a--b-";
  const std::vector<SplitPart> parts = {
      {{0, 1}, false}, {{1, 2}, true}, {{2, 3}, true}, {{3, 4}, false}, {{4, 5}, true}};
  std::vector<ByteSpan> spans;
  join_parts(parts, behavior, spans);
  Strings out;
  for (const ByteSpan span : spans) out.push_back(text.substr(span.begin, span.end - span.begin));
  return out;
}

TEST(Splitting, TreatsDelimitersAsAsked) {
  EXPECT_EQ(split(SplitBehavior::removed), (Strings{"a", "b"}));
  EXPECT_EQ(split(SplitBehavior::isolated), (Strings{"a", "-", "-", "b", "-"}));
  EXPECT_EQ(split(SplitBehavior::merged_with_previous), (Strings{"a-", "-", "b-"}));
  EXPECT_EQ(split(SplitBehavior::merged_with_next), (Strings{"a", "-", "-b", "-"}));
  EXPECT_EQ(split(SplitBehavior::contiguous), (Strings{"a", "--", "b", "-"}));
}

}  // namespace
}  // namespace nibble::text::regex_test
