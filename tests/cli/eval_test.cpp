#include "nibble/io/json.h"
#include "tests/cli/run_program.h"
#include "tests/support/disk.h"

#include <fmt/format.h>

#include <regex>

namespace nibble::eval_test {
namespace {

using Arguments = std::vector<std::string>;
using test::ProgramResult;
using test::run_nibble;

// `nibble eval --vram-limit`: the same output on less memory.
class EvalLimit : public testing::Test {
 protected:
  ProgramResult eval(Arguments words, const std::string& limit = "") const {
    words.insert(words.begin(), {"eval", "--model", test::source_path("models/tiny-qwen3").string(), "--json", "--rows", "--batch-size", "4"});
    if (!limit.empty()) words.insert(words.end(), {"--vram-limit", limit});
    return run_nibble(words);
  }

  // The bytes that a limit which is too small says to be the least.
  std::uint64_t least_of(const Arguments& words) const {
    const ProgramResult refused = eval(words, "1MiB");
    EXPECT_EQ(refused.code, 2) << refused.err;
    EXPECT_EQ(refused.out, "");
    EXPECT_EQ(refused.err.find("Loading"), std::string::npos) << refused.err;
    std::smatch found;
    const std::regex least(R"((?:^|\n)nibble: \[--vram-limit\] This run needs at least [^(]*\((\d+) bytes\)[^\n]*the limit is [^(]*\(1048576 bytes\)\.\n$)");
    EXPECT_TRUE(std::regex_search(refused.err, found, least)) << refused.err;
    return found.empty() ? 0 : std::stoull(found[1]);
  }

  // From the least that is named on: what is printed is the same, and what is named is really the least.
  void expect_same_output(const Arguments& words) const {
    SCOPED_TRACE(testing::PrintToString(words));
    const ProgramResult whole = eval(words);
    ASSERT_EQ(whole.code, 0) << whole.err;
    EXPECT_EQ(whole.err.find("Memory"), std::string::npos) << whole.err;
    const std::uint64_t least = least_of(words);
    EXPECT_EQ(eval(words, std::to_string(least - 1)).code, 2);
    for (const std::uint64_t more : {0u, 1000000u, 100000000u}) {
      const ProgramResult limited = eval(words, std::to_string(least + more));
      EXPECT_EQ(limited.code, 0) << limited.err;
      EXPECT_EQ(limited.out, whole.out);
      std::vector<std::string> parts = {"of 4 layers streamed", "at the peak"};
      if (more == 0) parts.insert(parts.end(), {"that --vram-limit allows: 4 of 4 layers", "decoded into one room"});
      if (more == 100000000) parts.push_back("that --vram-limit allows: 0 of 4 layers");
      for (const std::string& part : parts) EXPECT_NE(limited.err.find(part), std::string::npos) << part << " is not in: " << limited.err;
    }
  }

  std::string rows(const std::string& file, std::size_t count) {
    std::ifstream in(test::source_path(file));
    std::string text, line;
    for (std::size_t i = 0; i < count && std::getline(in, line); ++i) text += line + "\n";
    return folder_.write("rows.jsonl", text);
  }

  const std::string trained_ = test::source_path("tests/golden/tiny/adapter_trained");
  test::TemporaryFolder folder_;
};

TEST_F(EvalLimit, LossesStayTheSame) {
  const std::string data = rows("data/define/valid.jsonl", 10);
  expect_same_output({"--data", data, "--compute", "f32"});
  expect_same_output({"--data", data, "--compute", "f16", "--adapter", trained_, "--head-bits", "8"});
  expect_same_output({"--data", data, "--compute", "matrix", "--adapter", trained_});
  expect_same_output({"--data", data, "--adapter", test::source_path("tests/golden/dora/adapter_nonzero")});
}

TEST_F(EvalLimit, PairsAndLabelsToo) {
  expect_same_output({"--data", rows("examples/preference/valid.jsonl", 6), "--adapter", trained_, "--loss", "dpo"});
  const std::string labelled = R"({"input": "rain", "label": "weather"})"
                               "\n"
                               R"({"input": "soup", "label": "food"})"
                               "\n";
  expect_same_output({"--data", folder_.write("labelled.jsonl", labelled), "--labels", "auto"});
}

// `--ram-limit`: streamed layers that host memory has no room for come from a disk.
TEST_F(EvalLimit, OfHostMemoryTakesADisk) {
  const test::FolderOnDisk disk;
  const Arguments words{"--data", rows("data/define/valid.jsonl", 10), "--residency", "streamed", "--stream-dir", disk.path().string()};
  Arguments small = words, smaller = words;
  small.insert(small.end(), {"--ram-limit", "129.5MiB"});
  smaller.insert(smaller.end(), {"--ram-limit", "1MiB"});
  const ProgramResult whole = eval(words), read = eval(small), refused = eval(smaller);
  EXPECT_EQ(read.code, 0) << read.err;
  EXPECT_EQ(read.out, whole.out);
  EXPECT_EQ(whole.err.find("Disk"), std::string::npos) << whole.err;
  EXPECT_NE(read.err.find("of streamed layers in " + disk.path().string()), std::string::npos) << read.err;
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.err.find("[--ram-limit] This run needs at least"), std::string::npos) << refused.err;
}

TEST_F(EvalLimit, CountsTheRowsThatItLeavesOut) {
  const std::string row = R"({"prompt": "a", "completion": "b"})", bad = R"({"prompt": 1})";
  const std::string data = folder_.write("gap.jsonl", row + "\n" + bad + "\n" + row + "\n");
  const ProgramResult json = eval({"--data", data, "--skip-bad-rows"});
  ASSERT_EQ(json.code, 0) << json.err;
  EXPECT_NE(json.out.find("\"bad_rows\": 1"), std::string::npos) << json.out;
  const ProgramResult text = run_nibble({"eval", "--model", test::source_path("models/tiny-qwen3").string(), "--data", data, "--skip-bad-rows"});
  EXPECT_NE(text.out.find("left out: 1 bad row\n"), std::string::npos) << text.out;
}

TEST_F(EvalLimit, NumbersThatAreRefusedSayWhatIsAllowed) {
  for (const char* given : {"0", "-1", "inf", "x"}) {
    const ProgramResult refused = eval({"--data", "x", "--loss", "dpo", std::string("--beta=") + given});
    EXPECT_EQ(refused.code, 2);
    EXPECT_EQ(refused.err, fmt::format("nibble: --beta: {} is no number above 0. See: nibble eval --help\n", given));
  }
}

TEST_F(EvalLimit, WhatIsNoAmountIsNamed) {
  const ProgramResult refused = eval({"--data", rows("data/define/valid.jsonl", 1)}, "2 GiB");
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.err.find("[--vram-limit] \"2 GiB\""), std::string::npos) << refused.err;
}

}  // namespace
}  // namespace nibble::eval_test
