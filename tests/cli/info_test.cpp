#include "nibble/io/json.h"
#include "tests/cli/run_program.h"

#include <cstdlib>

namespace nibble::info_test {
namespace {

using test::run_nibble;

const std::string tiny = test::source_path("models/tiny-qwen3");

Json info(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "info");
  arguments.push_back("--json");
  const auto result = run_nibble(arguments);
  EXPECT_EQ(result.code, 0) << result.err;
  return result.code == 0 ? parse_json(result.out, "output") : Json::object();
}

void expect_refused(std::vector<std::string> arguments, int code, const std::string& part) {
  arguments.insert(arguments.begin(), "info");
  const auto result = run_nibble(arguments);
  EXPECT_EQ(result.code, code) << result.err;
  EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
}

TEST(Info, OfAModel) {
  const Json found = info({"--model", tiny});
  // Embedding 4096 x 256; a layer: q, o 2 x 256 x 384, k, v 2 x 256 x 128, MLP 3 x 256 x 768, norms 2 x 256 + 2 x 64.
  const int projections = 4 * (2 * 256 * 384 + 2 * 256 * 128 + 3 * 256 * 768);
  EXPECT_EQ(found["projection_parameters"], projections);
  EXPECT_EQ(found["parameters"], 4096 * 256 + projections + 4 * (2 * 256 + 2 * 64) + 256);
  EXPECT_EQ(found["nf4_bytes"], projections / 2 + projections / 64 * 4);
  EXPECT_EQ(found["tied_head"], true);
  EXPECT_EQ(found["chat_template"], true);
  EXPECT_EQ(found["dtypes"], Json::array({"BF16"}));
  ASSERT_GE(found["training_memory"].size(), 2u);
  for (const Json& row : found["training_memory"]) {
    EXPECT_GT(row["bytes"], found["nf4_bytes"]);
    EXPECT_LT(row["checkpointing_bytes"], row["bytes"]);
  }
}

TEST(Info, SaysWhereItsOutputDoesNotArrive) {
  const test::TemporaryFolder folder;
  const std::string err = folder / "err";
  const int status = std::system(fmt::format("'{}' info --model '{}' >/dev/full 2>'{}'", NIBBLE_PROGRAM, tiny, err).c_str());
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_EQ(test::slurp(err), "nibble: Standard output could not be written: No space left on device.\n");
}

TEST(Info, OfAnAdapter) {
  const Json found = info({"--adapter", test::source_path("tests/golden/tiny/adapter_trained"), "--model", tiny});
  EXPECT_EQ(found["rank"], 8);
  EXPECT_EQ(found["parameters"], 163840);
  EXPECT_EQ(found["targets"].size(), 7u);
  EXPECT_EQ(found["targets"]["q_proj"]["parameters"], 4 * 8 * (256 + 384));
  EXPECT_GT(found["targets"]["q_proj"]["norm_b"], 0);
  const Json fresh = info({"--adapter", test::source_path("tests/golden/tiny/adapter_init")});
  EXPECT_EQ(fresh["targets"]["q_proj"]["norm_b"], 0);
}

TEST(Info, OfData) {
  const Json found = info({"--model", tiny, "--data", test::source_path("data/define/valid.jsonl"), "--rows", "2", "--max-length", "64"});
  EXPECT_EQ(found["form"], "messages");
  EXPECT_EQ(found["rows"], 400);
  std::uint64_t rows = 0, above = 0;
  for (const Json& bar : found["histogram"]) {
    rows += bar["rows"].get<std::uint64_t>();
    if (bar["from"] > 64) above += bar["rows"].get<std::uint64_t>();
  }
  EXPECT_EQ(rows, 400u);
  EXPECT_EQ(found["over_long_rows"], above);
  EXPECT_EQ(found["first_rows"].size(), 2u);
  EXPECT_EQ(found["first_rows"][0]["tokens"].size(), found["first_rows"][0]["trained"].size());
}

TEST(Info, MarksTrainedTokensAndHidesControlCharacters) {
  const test::TemporaryFolder folder;
  const std::string data = folder.write(
      "rows.jsonl", R"({"messages": [{"role": "user", "content": "\u001b[2Jboo"}, {"role": "assistant", "content": "yes"}]})" "\n");
  const auto plain = run_nibble({"info", "--model", tiny, "--data", data});
  EXPECT_EQ(plain.code, 0) << plain.err;
  EXPECT_EQ(plain.out.find('\x1b'), std::string::npos) << plain.out;
  EXPECT_NE(plain.out.find("<1B>"), std::string::npos) << plain.out;
  EXPECT_NE(plain.out.find("\u27e6y"), std::string::npos) << plain.out;
  EXPECT_NE(plain.out.find("<|im_end|>\u27e7"), std::string::npos) << plain.out;
  const auto coloured = run_nibble({"info", "--model", tiny, "--data", data, "--color", "always"});
  EXPECT_NE(coloured.out.find("\x1b[0m"), std::string::npos) << coloured.out;
  EXPECT_EQ(coloured.out.find("\x1b[2J"), std::string::npos) << coloured.out;
}

TEST(Info, CountsBadRowsOrNamesTheFirst) {
  const test::TemporaryFolder folder;
  const std::string data = folder.write("rows.jsonl", "{\"text\": \"a row\"}\nnot json\n{\"text\": \"another\"}\n");
  expect_refused({"--model", tiny, "--data", data}, 1, "rows.jsonl, line 2");
  const Json found = info({"--model", tiny, "--data", data, "--skip-bad-rows", "--format", "text"});
  EXPECT_EQ(found["rows"], 2);
  EXPECT_EQ(found["bad_rows"], 1);
}

TEST(Info, RefusesInOneSentence) {
  const std::string data = test::source_path("data/define/valid.jsonl");
  expect_refused({}, 2, "Give --model, --adapter, or --data with --model.");
  expect_refused({"--data", data}, 2, "--data needs --model");
  expect_refused({"--model", tiny, "--data", data, "--adapter", "x"}, 2, "either --data or --adapter");
  expect_refused({"--model", "/nowhere"}, 1, "/nowhere");
  expect_refused({"--adapter", "/nowhere"}, 1, "/nowhere");
  expect_refused({"--model", tiny, "--data", "/nowhere"}, 1, "/nowhere");
  expect_refused({"--model", tiny, "--data", data, "--format", "parquet"}, 2, "parquet");
}

}  // namespace
}  // namespace nibble::info_test
