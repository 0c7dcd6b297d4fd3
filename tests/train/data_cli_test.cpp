#include "tests/train/tiny_run.h"

namespace nibble::data_cli_test {
namespace {

namespace fs = std::filesystem;
using test::expect_complaint;
using test::TinyRun;

// A run of two files, 8 and 4 rows of the shipped one, without validation.
struct TwoFiles {
  TwoFiles() {
    std::istringstream lines(test::slurp(tiny.arguments.at("data")));
    std::string text[2];
    std::size_t count = 0;
    for (std::string line; std::getline(lines, line); ++count) text[count < 8 ? 0 : 1] += line + "\n";
    first = tiny.folder.write("first.jsonl", text[0]).string();
    second = tiny.folder.write("second.jsonl", text[1]).string();
    whole = tiny.arguments.at("data");
    tiny.arguments.erase("data");
    tiny.arguments.erase("valid");
    tiny.arguments["max-steps"] = "8";
    tiny.arguments["keep-checkpoints"] = "9";
  }

  test::ProgramResult run(const std::vector<std::string>& data, const test::Arguments& changes = {}, const std::string& input = {}) const {
    std::vector<std::string> words = tiny.command(changes);
    words.push_back("--data");
    words.insert(words.end(), data.begin(), data.end());
    return test::run_program(NIBBLE_PROGRAM, words, input);
  }
  // What the last step left, in a folder below the test's.
  std::string end_of(const std::string& output) const { return test::adapter_bytes(tiny.folder / output / "checkpoint-8"); }
  std::string out(const std::string& name) const { return (tiny.folder / name).string(); }

  TinyRun tiny;
  std::string first, second, whole;
};

TEST(DataCli, FilesWithoutWeightsAreOneFile) {
  const TwoFiles files;
  ASSERT_EQ(files.run({files.whole}, {{"output", files.out("one")}}).code, 0);
  const auto two = files.run({files.first, files.second}, {{"output", files.out("two")}});
  ASSERT_EQ(two.code, 0) << two.err;
  EXPECT_NE(two.err.find("12 rows"), std::string::npos) << two.err;
  EXPECT_TRUE(files.end_of("one") == files.end_of("two"));
}

TEST(DataCli, WeightsArePlannedAndResumed) {
  const TwoFiles files;
  const std::vector<std::string> data = {files.first + ":0.25", files.second + ":0.75"};
  const auto plan = files.run(data, {{"dry-run", ""}});
  EXPECT_EQ(plan.code, 0) << plan.err;
  EXPECT_NE(plan.err.find("3 of an epoch's 12 rows from " + files.first + ", which has 8: each 0.38 times"), std::string::npos) << plan.err;
  EXPECT_NE(plan.err.find("9 of an epoch's 12 rows from " + files.second + ", which has 4: each 2.25 times"), std::string::npos) << plan.err;

  ASSERT_EQ(files.run(data, {{"output", files.out("whole")}}).code, 0);
  // The third epoch of four steps; 3 of 8 rows do not end with it.
  const auto resumed = files.run(data, {{"output", files.out("resumed")}, {"resume", (files.tiny.folder / "whole/checkpoint-6").string()}});
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_TRUE(files.end_of("whole") == files.end_of("resumed"));
  const auto config = test::run_program(
      NIBBLE_PROGRAM, {"train", "--config", (files.tiny.folder / "whole/config.toml").string(), "--output", files.out("again")});
  ASSERT_EQ(config.code, 0) << config.err;
  EXPECT_TRUE(files.end_of("whole") == files.end_of("again"));
  const test::Arguments resume = {{"output", files.out("other")}, {"resume", (files.tiny.folder / "whole/checkpoint-6").string()}};
  expect_complaint(files.run({files.first + ":0.5", files.second + ":0.5"}, resume), 2, "data_weights", "0.25", "0.5");
  expect_complaint(files.run({files.second + ":0.25", files.first + ":0.75"}, resume), 2, "data_hash");
}

TEST(DataCli, StandardInputTrainsAsTheFileDoes) {
  const TwoFiles files;
  ASSERT_EQ(files.run({files.whole}, {{"output", files.out("file")}}).code, 0);
  const auto piped = files.run({"-"}, {{"output", files.out("input")}}, test::slurp(files.whole));
  ASSERT_EQ(piped.code, 0) << piped.err;
  EXPECT_NE(piped.err.find("standard input"), std::string::npos) << piped.err;
  EXPECT_TRUE(files.end_of("file") == files.end_of("input"));
  expect_complaint(files.run({"-"}, {{"valid", "-"}}), 2, "--valid", "read once");
}

TEST(DataCli, ASystemMessageBelongsToTheRun) {
  const TwoFiles files;
  const std::string system = "Answer \"in one\nline\".";
  ASSERT_EQ(files.run({files.whole}, {{"output", files.out("with")}, {"system", system}}).code, 0);
  const std::string checkpoint = (files.tiny.folder / "with/checkpoint-6").string();
  expect_complaint(files.run({files.whole}, {{"output", files.out("on")}, {"resume", checkpoint}}), 2, "system was", "in one");
  const auto config = test::run_program(
      NIBBLE_PROGRAM, {"train", "--config", (files.tiny.folder / "with/config.toml").string(), "--output", files.out("again")});
  ASSERT_EQ(config.code, 0) << config.err;
  EXPECT_TRUE(files.end_of("with") == files.end_of("again"));
  ASSERT_EQ(files.run({files.whole}, {{"output", files.out("without")}}).code, 0);
  EXPECT_FALSE(files.end_of("with") == files.end_of("without"));
}

TEST(DataCli, WhatMakesNoSenseIsRefused) {
  const TwoFiles files;
  expect_complaint(files.run({files.first + ":1", files.second}), 2, "--data", "every file");
  expect_complaint(files.run({files.first + ":0"}), 2, "--data", "above 0");
  expect_complaint(files.run({files.first}, {{"valid", files.second + ":2"}}), 2, "--valid", "Weights");
  expect_complaint(files.run({files.first}, {{"map", "question"}}), 2, "--map", "question");
  expect_complaint(files.run({files.first}, {{"map", "question=user,answer=assistant"}}), 1, "first.jsonl, line 1", "\"question\"", "messages");
  expect_complaint(files.run({files.first}, {{"think", "keep"}}), 2, "--think", "knows no <think>");
  const std::string texts = files.tiny.folder.write("texts.jsonl", "{\"text\": \"a b\"}\n").string();
  expect_complaint(files.run({texts}, {{"system", "Be brief."}}), 2, "--system", "form text");
  expect_complaint(files.run({files.first + ":1", files.second + ":1e-9"}), 2, "--data", "too small");
}

}  // namespace
}  // namespace nibble::data_cli_test
