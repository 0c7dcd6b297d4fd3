#include "nibble/io/gguf.h"
#include "nibble/io/json.h"
#include "tests/cli/run_program.h"

namespace nibble {
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
  EXPECT_EQ(merge({"--overwrite"}).code, 0);
  EXPECT_FALSE(fs::exists(fs::path(output_) / "mine"));
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
}  // namespace nibble
