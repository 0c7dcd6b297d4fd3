#include "nibble/text/stop_texts.h"

#include "nibble/base/error.h"
#include "tests/support/files.h"

namespace nibble::text::stop_texts_test {
namespace {

// What comes out of `text`, byte by byte, and whether it was stopped.
std::pair<std::string, bool> cut(const std::vector<std::string>& stops, const std::string& text) {
  StopTexts filter(stops);
  std::string out;
  for (const char byte : text) out += filter.push(std::string(1, byte));
  out += filter.finish();
  return {out, filter.stopped()};
}

using Result = std::pair<std::string, bool>;

TEST(StopTexts, EndsBeforeTheFirstOne) {
  EXPECT_EQ(cut({"\n\n"}, "one\ntwo\n\nthree\n\n"), Result("one\ntwo", true));
  EXPECT_EQ(cut({"abc", "b"}, "xabcd"), Result("xa", true));
  EXPECT_EQ(cut({"User:"}, "Use User Us User:"), Result("Use User Us ", true));
  EXPECT_EQ(cut({"aab"}, "aaaab"), Result("aa", true)) << "a beginning inside of a beginning";
}

TEST(StopTexts, LosesNothingWhereNoneAppears) {
  EXPECT_EQ(cut({}, "all of it"), Result("all of it", false));
  EXPECT_EQ(cut({"<end>"}, "a < b, <en"), Result("a < b, <en", false));
}

TEST(StopTexts, AWholePieceIsCutInside) {
  StopTexts filter({"STOP", "NEVER"});
  EXPECT_EQ(filter.push("before STOP after"), "before ");
  EXPECT_TRUE(filter.stopped());
  EXPECT_EQ(filter.push("more"), "");
  EXPECT_EQ(filter.finish(), "");
}

TEST(StopTexts, ShowsWhatIsCertainAtOnce) {
  StopTexts filter({"STOP"});
  EXPECT_EQ(filter.push("go on S"), "go on ");
  EXPECT_EQ(filter.push("ea"), "Sea");
  EXPECT_FALSE(filter.stopped());
}

TEST(StopTexts, RefusesAnEmptyOne) {
  test::expect_error<UsageError>([] { StopTexts({"a", ""}); }, "empty");
}

}  // namespace
}  // namespace nibble::text::stop_texts_test
