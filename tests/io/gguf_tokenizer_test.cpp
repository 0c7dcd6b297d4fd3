#include "nibble/io/gguf_tokenizer.h"

#include "nibble/base/error.h"
#include "tests/support/files.h"

namespace nibble::gguf_tokenizer_test {
namespace {

using test::expect_error;

// Three words of a byte-level vocabulary, an end token and a row that no token has.
GgufMetadata small_metadata() {
  return {{"tokenizer.ggml.model", std::string("gpt2")},
          {"tokenizer.ggml.pre", std::string("qwen2")},
          {"tokenizer.ggml.tokens", std::vector<std::string>{"a", "b", "ab", "<|end|>", "<tool>", "[PAD5]"}},
          {"tokenizer.ggml.token_type", std::vector<std::int32_t>{1, 1, 1, 3, 4, 5}},
          {"tokenizer.ggml.merges", std::vector<std::string>{"a b"}},
          {"tokenizer.ggml.eos_token_id", 3u},
          {"tokenizer.ggml.add_bos_token", false},
          {"tokenizer.chat_template", std::string("{{ messages }}")}};
}

class GgufTokenizerTest : public testing::Test {
 protected:
  HfTokenizer read(const GgufMetadata& metadata) {
    GgufWriter(folder_ / "m.gguf", metadata, {}).finish();
    return hf_tokenizer(GgufFile(folder_ / "m.gguf"));
  }
  // With one key's value in place of another, or without it.
  HfTokenizer read_with(std::string_view key, std::optional<GgufValue> value) {
    GgufMetadata metadata = small_metadata();
    std::erase_if(metadata, [&](const auto& entry) { return entry.first == key; });
    if (value) metadata.emplace_back(key, *value);
    return read(metadata);
  }
  template <typename... Parts>
  void refuse(std::string_view key, std::optional<GgufValue> value, const Parts&... parts) {
    expect_error<DataError>([&] { read_with(key, value); }, "m.gguf", parts...);
  }

  test::TemporaryFolder folder_;
};

TEST_F(GgufTokenizerTest, BecomesTheFilesOfHuggingFace) {
  const HfTokenizer files = read(small_metadata());
  EXPECT_EQ(files.tokenizer["model"]["vocab"], (Json{{"a", 0}, {"b", 1}, {"ab", 2}}));
  EXPECT_EQ(files.tokenizer["normalizer"]["type"], "NFC");
  ASSERT_EQ(files.tokenizer["added_tokens"].size(), 2);
  EXPECT_EQ(files.tokenizer["added_tokens"][0]["content"], "<|end|>");
  EXPECT_EQ(files.tokenizer["added_tokens"][0]["special"], true);
  EXPECT_EQ(files.tokenizer["added_tokens"][1]["special"], false);
  EXPECT_EQ(files.config["eos_token"], "<|end|>");
  EXPECT_EQ(files.config["add_bos_token"], false);
  EXPECT_EQ(files.config["chat_template"], "{{ messages }}");
  EXPECT_FALSE(files.config.contains("bos_token"));
}

TEST_F(GgufTokenizerTest, GoesBackToTheSameMetadata) {
  const GgufMetadata again = gguf_tokenizer(read(small_metadata()), 6, "folder");
  const GgufMetadata original = small_metadata();
  EXPECT_EQ((std::map<std::string, GgufValue>(again.begin(), again.end())),
            (std::map<std::string, GgufValue>(original.begin(), original.end())));
}

TEST_F(GgufTokenizerTest, LlamaBeginsTextsWhereTheFileDoesNotSay) {
  GgufMetadata metadata = small_metadata();
  metadata[1].second = std::string("llama3");
  std::erase_if(metadata, [](const auto& entry) { return entry.first == "tokenizer.ggml.add_bos_token"; });
  const HfTokenizer files = read(metadata);
  EXPECT_EQ(files.config["add_bos_token"], true);
  EXPECT_EQ(files.tokenizer["model"]["ignore_merges"], true);
}

TEST_F(GgufTokenizerTest, RefusesWhatItDoesNotKnow) {
  refuse("tokenizer.ggml.model", std::string("llama"), "model \"llama\"", "tokenizer.json beside the file");
  refuse("tokenizer.ggml.pre", std::string("tekken"), "\"tekken\"", "\"llama-bpe\"", "tokenizer.json beside the file");
  refuse("tokenizer.ggml.tokens", std::nullopt, "tokenizer.ggml.tokens", "absent");
  refuse("tokenizer.ggml.tokens", std::vector<std::string>{"a", "a", "b", "c", "d", "e"}, "\"a\" comes twice");
  refuse("tokenizer.ggml.token_type", std::vector<std::int32_t>{1}, "1 values for 6 tokens");
  refuse("tokenizer.ggml.token_type", std::vector<std::int32_t>{1, 1, 1, 3, 4, 7}, "from 0 to 6");
  refuse("tokenizer.ggml.merges", std::nullopt, "tokenizer.ggml.merges");
  refuse("tokenizer.ggml.eos_token_id", 6u, "tokenizer.ggml.eos_token_id", "from 0 to 5");
}

TEST_F(GgufTokenizerTest, RefusesToWriteWhatLlamaCppWouldMisread) {
  const HfTokenizer files = read(small_metadata());
  const auto refuse_json = [&](const char* key, const Json& value, auto... parts) {
    HfTokenizer changed = files;
    changed.tokenizer[key] = value;
    expect_error<DataError>([&] { gguf_tokenizer(changed, 6, "folder"); }, "[folder", parts...);
  };
  refuse_json("pre_tokenizer", {{"type", "Whitespace"}}, "cuts words in a way", "\"qwen2\"");
  refuse_json("normalizer", {{"type", "Lowercase"}}, "Lowercase");
  refuse_json("model", {{"type", "Unigram"}}, "Unigram");
  refuse_json("added_tokens", Json::array({{{"id", 9}, {"content", "<x>"}}}), "the id 9", "6 rows");
  HfTokenizer spaced = files;
  spaced.tokenizer["model"]["merges"] = Json::array({"a b c"});
  expect_error<DataError>([&] { gguf_tokenizer(spaced, 6, "folder"); }, "\"a b c\"");
}

TEST_F(GgufTokenizerTest, KeepsNamedTemplates) {
  HfTokenizer files = read(small_metadata());
  files.config["chat_template"] =
      Json::array({{{"name", "default"}, {"template", "D"}}, {{"name", "tool_use"}, {"template", "T"}}});
  const HfTokenizer again = read(gguf_tokenizer(files, 6, "folder"));
  ASSERT_EQ(again.config["chat_template"].size(), 2);
  EXPECT_EQ(again.config["chat_template"][0], (Json{{"name", "tool_use"}, {"template", "T"}}));
  EXPECT_EQ(again.config["chat_template"][1], (Json{{"name", "default"}, {"template", "D"}}));
}

TEST_F(GgufTokenizerTest, TakesTheFilesBesideWhereItsOwnKindIsNotKnown) {
  GgufMetadata metadata = small_metadata();
  metadata[0].second = std::string("llama");
  GgufWriter(folder_ / "m.gguf", metadata, {}).finish();
  expect_error<DataError>([&] { read_hf_tokenizer(folder_ / "m.gguf"); }, "model \"llama\"");
  folder_.write("tokenizer.json", "{\"model\": {}}");
  EXPECT_EQ(read_hf_tokenizer(folder_ / "m.gguf").tokenizer, (Json{{"model", Json::object()}}));
}

}  // namespace
}  // namespace nibble::gguf_tokenizer_test
