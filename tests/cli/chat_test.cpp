#include "tests/cli/run_program.h"

namespace nibble::chat_test {
namespace {

const std::string tiny = test::source_path("models/tiny-qwen3");
const std::string trained = test::source_path("tests/golden/tiny/adapter_trained");
const std::string question = "Define the noun \"lighthouse\".\n";
const std::string definition = "A building that is a lighthouse.\n";

test::ProgramResult chat(const std::string& input, std::vector<std::string> more = {}) {
  std::vector<std::string> arguments = {"chat", "--model", tiny, "--compute", "f32", "--max-new-tokens", "16"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return test::run_nibble(arguments, input);
}

TEST(Chat, AnswersEachLineAndForgetsOnReset) {
  const auto result = chat(question + "\n/reset\n" + question + "/exit\nDefine the noun \"boat\".\n", {"--adapter", trained});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, definition + definition) << "nothing else: no prompt sign, no answer after /exit";
}

TEST(Chat, AnswersInTheLightOfWhatWasSaid) {
  const auto result = chat(question + question, {"--adapter", trained});
  EXPECT_EQ(result.code, 0) << result.err;
  ASSERT_TRUE(result.out.starts_with(definition)) << result.out;
  // The second answer to the same question, in view of the first, is that of `generate` for the whole chat.
  const test::TemporaryFolder folder;
  const std::string file = folder.write("chat.json", R"([{"role":"user","content":"Define the noun \"lighthouse\"."},
      {"role":"assistant","content":"A building that is a lighthouse."},
      {"role":"user","content":"Define the noun \"lighthouse\"."}])");
  const auto whole = test::run_nibble({"generate", "--model", tiny, "--compute", "f32", "--max-new-tokens", "16", "--adapter",
                                       trained, "--messages", file});
  EXPECT_EQ(result.out, definition + whole.out);
}

TEST(Chat, TheAdapterGoesOffAndOn) {
  const auto result = chat("/adapter off\n" + question + "/reset\n/adapter on\n" + question, {"--adapter", trained});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_FALSE(result.out.starts_with(definition)) << result.out;
  EXPECT_TRUE(result.out.ends_with(definition)) << result.out;
}

TEST(Chat, SaysWhatItDoesNotKnowAndGoesOn) {
  const auto result = chat("/adapter on\n/fly\n/system Be brief.\n//\n");
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.err.find("No adapter was given"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("no command \"/fly\""), std::string::npos) << result.err;
  EXPECT_NE(result.out, "") << "// is a message";
}

TEST(Chat, AFullConversationCanBeginAgain) {
  std::string words;
  for (int i = 0; i < 40; ++i) words += "house ";
  const auto result = chat(words + "\n" + question, {"--adapter", trained, "--context", "34"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.err.find("room for 34"), std::string::npos) << result.err;
  EXPECT_EQ(result.out, definition);
}

TEST(Chat, BadOptionsAreUsageErrors) {
  EXPECT_EQ(chat("", {"--context", "0"}).code, 2);
  EXPECT_EQ(chat("", {"--min-p", "3"}).code, 2);
  EXPECT_EQ(test::run_nibble({"chat", "--model", "/nowhere"}).code, 1);
}

}  // namespace
}  // namespace nibble::chat_test
