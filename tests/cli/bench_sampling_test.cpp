#include "nibble/io/json.h"
#include "tests/cli/run_program.h"
#include "tests/support/files.h"

namespace nibble::bench_sampling_test {
namespace {

test::ProgramResult bench_generate(const std::vector<std::string>& flags) {
  std::vector<std::string> command{"bench", "generate", "--gpu", "0", "--model", test::source_path("models/tiny-qwen3"), "--prompt-length", "5",
                                   "--new-tokens", "3", "--repeats", "1", "--compute", "f32", "--json", "-"};
  command.insert(command.end(), flags.begin(), flags.end());
  return test::run_nibble(command);
}

TEST(BenchGenerate, ChoosesTokensAsAsked) {
  const auto settings = [](const std::vector<std::string>& flags) {
    const auto result = bench_generate(flags);
    EXPECT_EQ(result.code, 0) << result.err;
    return parse_json(result.out, "output")["settings"];
  };
  const Json greedy = settings({}), drawn = settings({"--top-k", "3", "--repetition-penalty", "1.5"});
  EXPECT_EQ(greedy["temperature"], 0);
  EXPECT_EQ(drawn["temperature"], 1);
  EXPECT_EQ(drawn["top_k"], 3);
  EXPECT_EQ(drawn["repetition_penalty"], 1.5);
}

// Of several texts, what each reads beyond the weights counts for all.
TEST(BenchGenerate, ContinuesSeveralTexts) {
  const auto result = bench_generate({"--batch", "1", "3", "--peak-gbs", "20"});
  ASSERT_EQ(result.code, 0) << result.err;
  const Json rows = parse_json(result.out, "output")["rows"];
  ASSERT_EQ(rows.size(), 2u);
  const Json &one = rows[0], &three = rows[1];
  EXPECT_EQ(three["shape"], "3x5+3");
  EXPECT_EQ(three["batch"], 3);
  EXPECT_LE(three["error"], three["allowed"]);
  const double keys = 4 * 2 * 4.0 * 2 * 64 * (5 + 2);  // of a text: four layers, keys and values in f32
  EXPECT_DOUBLE_EQ(three["token"]["bytes"].get<double>(), one["token"]["bytes"].get<double>() + 2 * keys);
  EXPECT_DOUBLE_EQ(three["token"]["tokens_per_second"].get<double>(), 3 / three["token"]["seconds"]["median"].get<double>());
  EXPECT_DOUBLE_EQ(three["prompt"]["tokens_per_second"].get<double>(), 15 / three["prompt"]["seconds"]["median"].get<double>());
}

TEST(BenchGenerate, RefusesAWayToChooseThatIsNone) {
  const auto result = bench_generate({"--top-p", "1.5"});
  EXPECT_EQ(result.code, 2) << result.err;
  EXPECT_NE(result.err.find("top-p is 1.5; it must be above 0 and at most 1"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace nibble::bench_sampling_test
