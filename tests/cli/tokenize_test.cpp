#include "nibble/io/json.h"
#include "tests/cli/run_program.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

namespace nibble::tokenize_test {
namespace {

using test::run_nibble;

const std::string tiny = test::source_path("models/tiny-qwen3");

std::vector<std::string> tokenize(const std::vector<std::string>& more) {
  std::vector<std::string> arguments = {"tokenize", "--model", tiny};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

TEST(Tokenize, LinesComeBackFromTheirIds) {
  const std::string text = "Define the noun \"lighthouse\".\n\n  spaces,\ttabs and \xF0\x9F\x98\x80\n<|im_start|>user\nno end of line";
  const auto ids = run_nibble(tokenize({"--text-file", "-"}), text);
  EXPECT_EQ(ids.code, 0) << ids.err;
  EXPECT_EQ(ids.err, "");
  EXPECT_EQ(std::count(ids.out.begin(), ids.out.end(), '\n'), 5);
  const auto back = run_nibble(tokenize({"--decode", "--text-file", "-"}), ids.out);
  EXPECT_EQ(back.code, 0) << back.err;
  EXPECT_EQ(back.out, text + "\n");
}

TEST(Tokenize, AWholeFileIsOneText) {
  const test::TemporaryFolder folder;
  const std::string file = folder.write("text", "one\ntwo\n");
  const auto ids = run_nibble(tokenize({"--text-file", file, "--whole"}));
  EXPECT_EQ(std::count(ids.out.begin(), ids.out.end(), '\n'), 1);
  const auto back = run_nibble(tokenize({"--decode", "--json", "--text", ids.out}));
  EXPECT_EQ(back.out, "\"one\\ntwo\\n\"\n") << back.err;
}

TEST(Tokenize, SpecialTokensInATextMayBePlain) {
  EXPECT_EQ(run_nibble(tokenize({"--text", "<|im_end|>"})).out, "[4095]\n");
  const auto plain = run_nibble(tokenize({"--text", "<|im_end|>", "--plain"})).out;
  EXPECT_EQ(plain.find("4095"), plain.npos);
  EXPECT_EQ(run_nibble(tokenize({"--decode", "--text", plain})).out, "<|im_end|>\n");
  EXPECT_EQ(run_nibble(tokenize({"--decode", "--text", "[4095]", "--skip-special-tokens"})).out, "\n");
}

TEST(Tokenize, BrokenUtf8IsReplacedAndSaid) {
  const auto result = run_nibble(tokenize({"--text-file", "-"}), "good\nb\xFFroken \xC3\n");
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(result.err, "2 broken UTF-8 sequences were read as U+FFFD, the first in standard input, line 2.\n");
}

TEST(Tokenize, IdsWithoutATokenAreSaid) {
  const auto result = run_nibble(tokenize({"--decode", "--text", "[4095, 4000000]"}));
  EXPECT_EQ(result.out, "<|im_end|>\n");
  EXPECT_EQ(result.err, "1 id names no token and gave no text.\n");
}

TEST(Tokenize, ChatsAreWhatTheTemplateMakesOfThem) {
  const std::string chat = R"({"messages": [{"role": "user", "content": "Hi"}]})";
  const std::string text = "<|im_start|>user\\nHi<|im_end|>\\n";
  EXPECT_EQ(run_nibble(tokenize({"--chat", "--json", "--text", chat})).out, "\"" + text + "\"\n");
  EXPECT_EQ(run_nibble(tokenize({"--chat", "--json", "--generation-prompt", "--text", chat})).out, "\"" + text + "<|im_start|>assistant\\n\"\n");
  const auto ids = run_nibble(tokenize({"--chat", "--text", chat}));
  EXPECT_EQ(run_nibble(tokenize({"--decode", "--json", "--text", ids.out})).out, "\"" + text + "\"\n");
  const auto bad = run_nibble(tokenize({"--chat", "--text-file", "-"}), chat + "\n{\"messages\": 1}\n");
  EXPECT_EQ(bad.code, 1);
  EXPECT_NE(bad.err.find("standard input, line 2"), bad.err.npos) << bad.err;
  EXPECT_NE(bad.err.find("\"messages\", a list"), bad.err.npos) << bad.err;
}

TEST(Tokenize, RefusesInOneSentence) {
  const auto refuses = [](const std::vector<std::string>& more, const std::string& input, int code, const std::string& part) {
    const auto result = run_nibble(tokenize(more), input);
    EXPECT_EQ(result.code, code) << result.err;
    EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  };
  refuses({}, "", 2, "Give either --text or --text-file.");
  refuses({"--text", "a", "--text-file", "b"}, "", 2, "Give either --text or --text-file.");
  refuses({"--text-file", "/nowhere"}, "", 1, "/nowhere");
  refuses({"--text-file", "/"}, "", 1, "folder");
  refuses({"--decode", "--text-file", "-"}, "[1]\n{\"a\": 1}\n", 1, "line 2");
  refuses({"--decode", "--text", "[1, -1]"}, "", 1, "not -1");
  refuses({"--decode", "--text", "[1.5]"}, "", 1, "not 1.5");
  refuses({"--decode", "--text", "[99999999999]"}, "", 1, "not 99999999999");
  refuses({"--decode", "--text", "[\"\x1b[31m\"]"}, "", 1, "[--text");
}

TEST(Tokenize, SaysWhyItsOutputDoesNotArrive) {
  const test::TemporaryFolder folder;
  std::string lines;
  for (int i = 0; i < 4000; ++i) lines += "Hello there\n";
  const std::string texts = folder.write("texts", lines), err = folder / "err";
  const int status = std::system(fmt::format("'{}' tokenize --model '{}' --text-file '{}' >/dev/full 2>'{}'", NIBBLE_PROGRAM, tiny, texts, err).c_str());
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_EQ(test::slurp(err), "nibble: [standard output] Writing failed: No space left on device.\n");
}

}  // namespace
}  // namespace nibble::tokenize_test
