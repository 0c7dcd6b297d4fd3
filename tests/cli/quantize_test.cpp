#include "nibble/io/json.h"
#include "tests/cli/run_program.h"

namespace nibble::quantize_test {
namespace {

using test::run_nibble;

const std::string tiny = test::source_path("models/tiny-qwen3");
const std::string golden = test::source_path("tests/golden/tiny/golden.safetensors");
const std::string adapter = test::source_path("tests/golden/tiny/adapter_nonzero");

class QuantizeVerb : public testing::Test {
 protected:
  test::ProgramResult quantize(std::vector<std::string> more) const {
    more.insert(more.begin(), {"quantize", "--model", tiny, "--out", output_});
    return run_nibble(more);
  }

  test::TemporaryFolder folder_;
  std::string output_ = folder_ / "quantised", cache_ = folder_ / "cache";
};

TEST_F(QuantizeVerb, WritesAModelThatGivesTheSameNumbers) {
  const auto result = quantize({"--shard-size", "2MB"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, output_ + ": 3.8 MiB in 2 files, of 8.5 MiB; 28 matrices in NF4\n");
  const auto reports = [&](const std::string& model) {
    return run_nibble({"verify", "--model", model, "--adapter", adapter, "--golden", golden, "--json"});
  };
  const auto original = reports(tiny), written = reports(output_);
  ASSERT_EQ(written.code, 0) << written.err;
  EXPECT_EQ(written.out, original.out);
}

TEST_F(QuantizeVerb, QuantisesScalesWhereAsked) {
  const auto result = quantize({"--double-quant", "--compute-dtype", "f16"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.out.find("their scales in 8 bits"), std::string::npos) << result.out;
  const Json config = read_json_file(fs::path(output_) / "config.json")["quantization_config"];
  EXPECT_EQ(config["bnb_4bit_compute_dtype"], "float16");
  EXPECT_EQ(config["bnb_4bit_use_double_quant"], true);
  const auto again = quantize({});
  EXPECT_EQ(again.code, 2);
  EXPECT_NE(again.err.find("not empty"), std::string::npos) << again.err;
  const auto twice = run_nibble({"quantize", "--model", output_, "--out", folder_ / "twice"});
  EXPECT_EQ(twice.code, 1);
  EXPECT_NE(twice.err.find("in 4 bits already"), std::string::npos) << twice.err;
  EXPECT_EQ(quantize({"--compute-dtype", "i8"}).code, 2);
}

TEST_F(QuantizeVerb, ACacheIsMadeAndFoundWithEqualAnswers) {
  const auto answer = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"generate", "--model", tiny, "--prompt", "What is rain?", "--max-new-tokens", "8"});
    return run_nibble(more);
  };
  const auto without = answer({}), made = answer({"--cache-dir", cache_}), found = answer({"--cache-dir", cache_});
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_NE(made.err.find("Cache    " + cache_ + "/tiny-qwen3-"), std::string::npos) << made.err;
  EXPECT_NE(made.err.find("(3.8 MiB), made just now"), std::string::npos) << made.err;
  EXPECT_NE(found.err.find("(3.8 MiB), as it was kept"), std::string::npos) << found.err;
  EXPECT_EQ(made.out, without.out);
  EXPECT_EQ(found.out, without.out);
}

TEST_F(QuantizeVerb, ARunWithACacheTrainsTheSameAdapter) {
  const auto train = [&](const std::string& name, std::vector<std::string> more) {
    more.insert(more.begin(), {"train", "--model", tiny, "--data", test::source_path("data/define/train.jsonl"), "--output", folder_ / name,
                               "--batch-size", "2", "--max-steps", "2", "--lora-rank", "4"});
    const auto result = run_nibble(more);
    EXPECT_EQ(result.code, 0) << result.err;
    return test::slurp(folder_ / name / "adapter_model.safetensors");
  };
  const std::string without = train("without", {});
  EXPECT_TRUE(train("made", {"--cache-dir", cache_}) == without);
  EXPECT_TRUE(train("found", {"--cache-dir", cache_}) == without);
  EXPECT_EQ(read_json_file(folder_ / "found" / "adapter_config.json")["base_model_name_or_path"], tiny);
  EXPECT_EQ(std::distance(fs::directory_iterator(cache_), {}), 1);
}

}  // namespace
}  // namespace nibble::quantize_test
