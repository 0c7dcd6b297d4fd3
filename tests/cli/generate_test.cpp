#include "nibble/io/json.h"
#include "tests/cli/run_program.h"
#include "tests/support/disk.h"

#include <algorithm>
#include <sstream>

namespace nibble::generate_test {
namespace {

using Arguments = std::vector<std::string>;
using test::run_nibble;

const std::string tiny = test::source_path("models/tiny-qwen3");
const std::string trained = test::source_path("tests/golden/tiny/adapter_trained");
const std::string question = "Define the noun \"lighthouse\".";

Arguments generate(const Arguments& more) {
  Arguments arguments = {"generate", "--model", tiny, "--compute", "f32", "--max-new-tokens", "24"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

Json json_of(const Arguments& more) {
  Arguments arguments = generate(more);
  arguments.push_back("--json");
  const auto result = run_nibble(arguments);
  EXPECT_EQ(result.code, 0) << result.err;
  return parse_json(result.out, "output");
}

void expect_refused(const Arguments& arguments, int code, const std::string& part) {
  const auto result = run_nibble(arguments);
  EXPECT_EQ(result.code, code) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
}

TEST(Generate, TheTrainedAdapterDefinesAndTheBaseRambles) {
  const auto with = run_nibble(generate({"--adapter", trained, "--prompt", question}));
  EXPECT_EQ(with.code, 0) << with.err;
  EXPECT_EQ(with.out, "A building that is a lighthouse.\n");
  EXPECT_NE(with.err.find("22 prompt tokens"), std::string::npos) << with.err;
  EXPECT_NE(with.err.find("ended by end_token"), std::string::npos) << with.err;
  const auto without = run_nibble(generate({"--adapter", trained, "--no-adapter", "--prompt", question}));
  EXPECT_EQ(without.code, 0) << without.err;
  EXPECT_NE(without.out, with.out);
  EXPECT_NE(without.err.find("ended by max_new_tokens"), std::string::npos) << without.err;
}

TEST(Generate, LayersFromADiskSayTheSame) {
  const test::FolderOnDisk disk;
  const Json whole = json_of({"--adapter", trained, "--prompt", question}),
             read = json_of({"--adapter", trained, "--prompt", question, "--residency", "streamed", "--stream-memory", "disk", "--stream-dir",
                             disk.path().string()});
  EXPECT_EQ(read["token_ids"], whole["token_ids"]);
  EXPECT_TRUE(std::filesystem::is_empty(disk.path()));
}

TEST(Generate, AFolderInMemoryIsNoDisk) {
  const std::string memory = test::folder_in_memory().string();
  if (memory.empty()) GTEST_SKIP() << "No tmpfs is mounted.";
  expect_refused(generate({"--prompt", question, "--residency", "streamed", "--stream-memory", "disk", "--stream-dir", memory}), 1, "--stream-dir");
}

TEST(Generate, JsonAndFilesSayTheSame) {
  const test::TemporaryFolder folder;
  const Json whole = json_of({"--adapter", trained, "--prompt", question});
  EXPECT_EQ(whole["text"], "A building that is a lighthouse.");
  EXPECT_EQ(whole["end"], "end_token");
  EXPECT_EQ(whole["prompt_tokens"], 22);
  EXPECT_EQ(whole["new_tokens"], whole["token_ids"].size());
  EXPECT_EQ(whole["token_ids"].back(), 4095);

  const Json message = {{"role", "user"}, {"content", question}};
  const std::string list = folder.write("list.json", Json::array({message}).dump());
  EXPECT_EQ(json_of({"--adapter", trained, "--messages", list})["token_ids"], whole["token_ids"]);
  const std::string raw = folder.write("raw.txt", "<|im_start|>user\n" + question + "<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(json_of({"--adapter", trained, "--raw", "--prompt-file", raw})["token_ids"], whole["token_ids"]);
  EXPECT_GT(json_of({"--adapter", trained, "--prompt", question, "--system", "Be brief."})["prompt_tokens"], 22);
}

TEST(Generate, ASystemMessageTakesThePlaceOfAChatsOwn) {
  const test::TemporaryFolder folder;
  const auto turn = [](const char* role, const char* content) { return Json{{"role", role}, {"content", content}}; };
  const Json plain = Json::array({turn("user", "a")}), own = Json::array({turn("system", "Be long and kind."), turn("user", "a")});
  const auto asked = [&](const Json& messages) {
    return json_of({"--messages", folder.write("chat.json", messages.dump()), "--system", "Be brief."});
  };
  EXPECT_EQ(asked(own)["prompt_tokens"], asked(plain)["prompt_tokens"]);
  EXPECT_EQ(asked(own)["token_ids"], asked(plain)["token_ids"]);
}

TEST(Generate, DrawsRepeatWithTheirSeed) {
  const auto text = [](const char* seed) {
    return json_of({"--prompt", question, "--temperature", "1", "--top-k", "40", "--seed", seed})["text"];
  };
  const Json first = text("5");
  EXPECT_EQ(text("5"), first);
  EXPECT_NE(text("6"), first);
}

TEST(Generate, StopsBeforeAStopText) {
  const Json cut = json_of({"--adapter", trained, "--prompt", question, "--stop", "nowhere", "that is"});
  EXPECT_EQ(cut["text"], "A building ");
  EXPECT_EQ(cut["end"], "stop_text");
}

// Rows of several forms; answers come in their order, each as it comes alone.
TEST(Generate, AFileOfPromptsIsAnsweredInItsOrder) {
  const test::TemporaryFolder folder;
  const auto asks = [](const std::string& noun) { return "Define the noun \"" + noun + "\"."; };
  const auto turn = [](const char* role, const std::string& content) { return Json{{"role", role}, {"content", content}}; };
  const std::vector<std::string> nouns{"lighthouse", "river", "teacher", "bread", "winter"};
  const std::string rows = Json{{"prompt", asks(nouns[0])}}.dump() + "\n\n" +
                           Json{{"prompt", Json::array({turn("user", asks(nouns[1]))})}}.dump() + "\n" +
                           Json{{"messages", Json::array({turn("user", asks(nouns[2])), turn("assistant", "Somebody.")})}}.dump() + "\n" +
                           Json{{"prompt", "<|im_start|>user\n" + asks(nouns[3]) + "<|im_end|>\n<|im_start|>assistant\n"}, {"completion", "Food."}}.dump() + "\n" +
                           Json{{"instruction", asks(nouns[4])}, {"output", "A season."}}.dump() + "\n";
  const std::string file = folder.write("rows.jsonl", rows);
  for (const std::string batch : {"1", "3", "8", ""}) {
    Arguments options{"--adapter", trained, "--prompts", file};
    if (!batch.empty()) options.insert(options.end(), {"--batch-size", batch});
    const auto result = run_nibble(generate(options));
    EXPECT_EQ(result.code, 0) << result.err;
    const std::string at_a_time = batch.empty() || batch == "8" ? "5" : batch;
    EXPECT_NE(result.err.find("5 prompts answered, " + at_a_time + " at a time"), std::string::npos) << result.err;
    std::istringstream lines(result.out);
    const std::vector<int> numbers{1, 3, 4, 5, 6};
    std::size_t i = 0;
    for (std::string line; std::getline(lines, line); ++i) {
      const Json answer = parse_json(line, "output");
      ASSERT_LT(i, nouns.size());
      EXPECT_EQ(answer["line"], numbers[i]);
      EXPECT_EQ(answer["token_ids"], json_of({"--adapter", trained, "--prompt", asks(nouns[i])})["token_ids"]) << nouns[i];
    }
    EXPECT_EQ(i, nouns.size());
  }
}

TEST(Generate, RowsWithoutAPromptAreNamed) {
  const test::TemporaryFolder folder;
  const auto refused = [&](const std::string& rows, const std::string& part) {
    expect_refused(generate({"--prompts", folder.write("rows.jsonl", rows)}), 1, part);
  };
  refused("{\"prompt\": \"a\"}\n{\"prompt\": 5}\n", "rows.jsonl:2");
  refused("{\"text\": \"a\"}\n", "without a prompt");
  refused("not json\n", "rows.jsonl:1");
  refused("{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}\n", "rows.jsonl:1");
  refused("\n", "has no prompts");
  const std::string chat = folder.write("chat.jsonl", R"({"messages": [{"role": "user", "content": "a"}]})");
  expect_refused(generate({"--raw", "--prompts", chat}), 1, "chat.jsonl:1] The row is a chat;");
  expect_refused(generate({"--prompts", folder / "none"}), 1, "none");
}

TEST(Generate, BadOptionsAreUsageErrors) {
  expect_refused(generate({}), 2, "Give one of --prompt");
  expect_refused(generate({"--prompt", "a", "--messages", "b"}), 2, "2 were given");
  expect_refused(generate({"--prompt", "a", "--raw", "--system", "b"}), 2, "--raw");
  expect_refused(generate({"--prompt", "a", "--top-p", "1.5"}), 2, "top-p is 1.5");
  expect_refused(generate({"--prompt", "a", "--temperature", "-1"}), 2, "temperature is -1");
  expect_refused(generate({"--prompt", "a", "--temperature", "warm"}), 2, "warm");
  expect_refused(generate({"--prompt", "a", "--stop", ""}), 2, "empty");
  expect_refused({"generate", "--prompt", "a"}, 2, "--model");
}

TEST(Generate, BadFilesAreNamed) {
  const test::TemporaryFolder folder;
  expect_refused({"generate", "--model", "/nowhere", "--prompt", "a"}, 1, "/nowhere");
  expect_refused(generate({"--prompt", "a", "--adapter", folder.path()}), 1, "adapter_config.json");
  expect_refused(generate({"--prompt-file", folder / "none"}), 1, "none");
  expect_refused(generate({"--messages", folder.write("text", "hello")}), 1, "not JSON");
  expect_refused(generate({"--messages", folder.write("role", R"([{"role":"boss","content":"x"}])")}), 1, "boss");
  std::string words;
  for (int i = 0; i < 1100; ++i) words += "house ";
  expect_refused(generate({"--prompt-file", folder.write("long", words)}), 1, "together may have 1024");
}

TEST(Generate, NamesWithControlCharactersDoNotReachTheTerminal) {
  const auto result = run_nibble({"generate", "--model", "/nowhere\x1b[2J", "--prompt", "a"});
  EXPECT_EQ(result.code, 1);
  EXPECT_EQ(result.err.find('\x1b'), std::string::npos);
  EXPECT_NE(result.err.find("<1B>"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace nibble::generate_test
