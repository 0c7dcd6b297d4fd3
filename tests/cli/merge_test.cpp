#include "nibble/io/gguf.h"
#include "nibble/io/json.h"
#include "tests/cli/run_program.h"

namespace nibble::merge_test {
namespace {

using test::run_nibble;

const std::string tiny = test::source_path("models/tiny-qwen3");
const std::string adapter = test::source_path("tests/golden/tiny/adapter_nonzero");

class MergeVerb : public testing::Test {
 protected:
  test::ProgramResult merge(std::vector<std::string> more) const {
    more.insert(more.begin(), {"merge", "--model", tiny, "--output", output_});
    return run_nibble(more);
  }
  void expect_refused(const std::vector<std::string>& more, int code, const std::string& part) const {
    const auto result = merge(more);
    EXPECT_EQ(result.code, code) << result.err;
    EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
  }

  test::TemporaryFolder folder_;
  std::string output_ = folder_ / "merged";
};

TEST_F(MergeVerb, SaysWhatItWrote) {
  const auto result = merge({"--adapter", adapter, "--onto", "nf4", "--dtype", "f16", "--max-shard-size", "2MB"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_TRUE(result.out.starts_with(output_ + ": 8.5 MiB in 5 files\n")) << result.out;
  // As numpy computes it from the files: |BA| 4.689% and |NF4(W) - W| 9.214% of |W|.
  EXPECT_NE(result.out.find("adapter changes 4.689%; NF4 changes 9.214%"), std::string::npos) << result.out;
  EXPECT_EQ(read_json_file(fs::path(output_) / "config.json")["dtype"], "float16");
  const auto answer = run_nibble({"generate", "--model", output_, "--prompt", "hi", "--max-new-tokens", "2"});
  EXPECT_EQ(answer.code, 0) << answer.err;
}

TEST_F(MergeVerb, TakesSeveralAdaptersWithWeights) {
  const std::string patterns = test::source_path("tests/golden/patterns/adapter_nonzero");
  const auto result = merge({"--adapter", adapter + ":0.7", patterns + ":0.3"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.out.find("the adapters change 3."), std::string::npos) << result.out;
  expect_refused({"--overwrite", "--adapter", adapter + ":much"}, 2, "FOLDER:WEIGHT");
  expect_refused({"--overwrite", "--adapter", adapter + ":nan"}, 2, "finite");
  expect_refused({"--overwrite", "--adapter", "/nowhere:0.5"}, 1, "/nowhere");
}

// Merged onto NF4 the loss is that of training's model, which eval computes with the adapter beside the weights.
TEST_F(MergeVerb, PrintsTheLossOnEitherBase) {
  const std::string valid = folder_.write("valid.jsonl", [] {
    std::ifstream in(test::source_path("data/define/valid.jsonl"));
    std::string text, line;
    for (int i = 0; i < 4 && std::getline(in, line); ++i) text += line + "\n";
    return text;
  }());
  const auto result = merge({"--adapter", adapter, "--dtype", "f32", "--valid", valid});
  ASSERT_EQ(result.code, 0) << result.err;
  const auto number_behind = [&](const std::string& words) {
    const std::size_t at = result.out.find(words);
    EXPECT_NE(at, std::string::npos) << result.out;
    return at == std::string::npos ? 0.0 : std::stod(result.out.substr(at + words.size()));
  };
  const double original = number_behind("in f32: "), nf4 = number_behind("original weights, ");
  const auto loss_of = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"eval", "--data", valid, "--json"});
    return parse_json(run_nibble(more).out, "eval")["eval_loss"].get<double>();
  };
  // Six digits are printed, and the sums of merged weights round once more.
  EXPECT_NEAR(nf4, loss_of({"--model", tiny, "--adapter", adapter}), 1e-5);
  EXPECT_GT(std::abs(nf4 - original), 1e-3) << "the bases differ by 9% of their norm";
  EXPECT_NEAR(number_behind("which is "), nf4 - original, 1.5e-6);
  const auto alone = run_nibble({"merge", "--model", test::source_path("tests/golden/bnb/model"), "--output", folder_ / "bnb", "--valid", valid});
  EXPECT_EQ(alone.code, 1) << "that folder has no tokenizer";
  EXPECT_FALSE(fs::exists(folder_ / "bnb")) << "rows are read before anything is written";
  expect_refused({"--overwrite", "--valid", "/nowhere"}, 2, "--valid");
}

TEST_F(MergeVerb, RefusesByName) {
  expect_refused({"--dtype", "f64"}, 2, "--dtype");
  expect_refused({"--onto", "fp4"}, 2, "--onto");
  expect_refused({"--max-shard-size", "big"}, 2, "--max-shard-size");
  expect_refused({"--max-shard-size", "0"}, 2, "0 bytes");
  expect_refused({"--adapter", "/nowhere"}, 1, "/nowhere");
  EXPECT_TRUE(fs::is_empty(folder_.path()));
  fs::create_directory(output_);
  std::ofstream(fs::path(output_) / "mine") << "x";
  expect_refused({}, 2, "not empty");
  expect_refused({"--overwrite"}, 2, "would remove mine too");
  EXPECT_TRUE(fs::exists(fs::path(output_) / "mine"));
}

// The folder of an earlier merge, but none with anything else in it, nor the one that the program was started in.
TEST_F(MergeVerb, OverwritesWhatItWroteAlone) {
  ASSERT_EQ(merge({"--adapter", adapter}).code, 0);
  expect_refused({"--dtype", "f16"}, 2, "not empty");
  ASSERT_EQ(merge({"--dtype", "f16", "--overwrite"}).code, 0);
  EXPECT_EQ(read_json_file(fs::path(output_) / "config.json")["dtype"], "float16");
  fs::create_directory(fs::path(output_) / "notes");
  expect_refused({"--overwrite"}, 2, "would remove notes too");
  fs::remove(fs::path(output_) / "notes");
  const fs::path before = fs::current_path();
  fs::current_path(output_);
  expect_refused({"--overwrite"}, 2, "the working folder");
  fs::current_path(before);
  EXPECT_EQ(read_json_file(fs::path(output_) / "config.json")["dtype"], "float16");
}

TEST_F(MergeVerb, WritesOneGgufFile) {
  const auto result = merge({"--adapter", adapter, "--format", "gguf", "--dtype", "q4_0"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.out.find(" in 1 file\n"), std::string::npos) << result.out;
  EXPECT_TRUE(is_gguf(output_));
  EXPECT_EQ(GgufFile(output_).tensors().at("blk.0.attn_q.weight").info().name, "Q4_0");
  expect_refused({"--format", "gguf"}, 2, "there already");
  EXPECT_EQ(merge({"--format", "gguf", "--overwrite"}).code, 0);
  EXPECT_EQ(GgufFile(output_).tensors().at("blk.0.attn_q.weight").info().name, "BF16");
  expect_refused({"--overwrite"}, 2, "The output is a file");
  fs::remove(output_);
  fs::create_directory(output_);
  expect_refused({"--format", "gguf", "--overwrite"}, 2, "The output is a folder");
  expect_refused({"--dtype", "q8_0"}, 2, "--format gguf");
}

}  // namespace
}  // namespace nibble::merge_test
