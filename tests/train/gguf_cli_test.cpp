#include "nibble/io/json.h"
#include "tests/train/tiny_run.h"

// A model as a GGUF file is the same model.
namespace nibble::gguf_cli_test {
namespace {

std::string gguf_of_tiny(const test::TemporaryFolder& folder) {
  std::string file = folder / "tiny.gguf";
  const auto result = test::run_program(NIBBLE_PROGRAM, {"merge", "--model", test::source_path("models/tiny-qwen3"),
                                                         "--output", file, "--format", "gguf", "--dtype", "f32"});
  EXPECT_EQ(result.code, 0) << result.err;
  return file;
}

TEST(GgufRun, TrainsTheSameBits) {
  const test::TinyRun folder_run, file_run;
  const std::string model = gguf_of_tiny(file_run.folder);
  const auto from_folder = folder_run.run(), from_file = file_run.run({{"model", model}});
  ASSERT_EQ(from_folder.code, 0) << from_folder.err;
  ASSERT_EQ(from_file.code, 0) << from_file.err;
  EXPECT_EQ(test::adapter_bytes(file_run.output()), test::adapter_bytes(folder_run.output()));
  const auto records = [](const test::TinyRun& run) {
    auto result = test::timeless_metrics(run.output());
    for (Json& record : result) {
      for (const char* key : {"model", "options"}) record.erase(key);
    }
    return result;
  };
  EXPECT_EQ(records(file_run), records(folder_run));
  EXPECT_FALSE(records(file_run).empty());
}

TEST(GgufRun, EveryVerbReadsIt) {
  const test::TemporaryFolder folder;
  const std::string tiny = test::source_path("models/tiny-qwen3"), file = gguf_of_tiny(folder);
  const auto same = [&](std::vector<std::string> words) {
    auto of_file = words;
    words.insert(words.end(), {"--model", tiny});
    of_file.insert(of_file.end(), {"--model", file});
    const auto expected = test::run_program(NIBBLE_PROGRAM, words), found = test::run_program(NIBBLE_PROGRAM, of_file);
    EXPECT_EQ(expected.code, 0) << words[0] << ": " << expected.err;
    EXPECT_EQ(found.code, 0) << words[0] << ": " << found.err;
    EXPECT_EQ(found.out, expected.out) << words[0];
  };
  same({"tokenize", "--text", "It's <|im_end|> 12 \xE2\x82\xAC"});
  same({"generate", "--prompt", "hi", "--max-new-tokens", "4"});
  const auto golden = test::run_program(
      NIBBLE_PROGRAM, {"verify", "--model", file, "--golden", test::source_path("tests/golden/tiny/golden.safetensors"),
                       "--adapter", test::source_path("tests/golden/tiny/adapter_nonzero")});
  EXPECT_EQ(golden.code, 0) << golden.out << golden.err;
  const auto info = test::run_program(NIBBLE_PROGRAM, {"info", "--model", file, "--json"});
  ASSERT_EQ(info.code, 0) << info.err;
  EXPECT_EQ(parse_json(info.out, "info")["dtypes"], Json::array({"F32"}));
}

}  // namespace
}  // namespace nibble::gguf_cli_test
