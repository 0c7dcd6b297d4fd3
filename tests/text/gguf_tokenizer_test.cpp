// Tokenizers that went through a GGUF file's metadata, held against the tokenizer.json that they came from.

#include "nibble/io/gguf_tokenizer.h"

#include "nibble/text/chat_template.h"
#include "nibble/text/tokenizer.h"
#include "tests/support/files.h"

namespace nibble::text::gguf_tokenizer_test {
namespace {

std::string from_hex(const std::string& hex) {
  std::string out;
  for (std::size_t i = 0; i < hex.size(); i += 2)
    out.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  return out;
}

Tokenizer through_gguf(const test::TemporaryFolder& folder, const HfTokenizer& files, std::int64_t rows) {
  GgufWriter(folder / "m.gguf", gguf_tokenizer(files, rows, "files"), {}).finish();
  return Tokenizer::load(folder / "m.gguf");
}

void expect_equal(const Tokenizer& a, const Tokenizer& b, const std::string& text) {
  SCOPED_TRACE(text);
  for (const bool special : {true, false}) {
    const EncodeOptions options{.add_special_tokens = special, .parse_special = special};
    EXPECT_EQ(a.encode(text, options).ids, b.encode(text, options).ids);
  }
  const auto ids = b.encode(text).ids;
  EXPECT_EQ(a.decode(ids), b.decode(ids));
}

class GgufFamilies : public testing::TestWithParam<std::string> {};

TEST_P(GgufFamilies, MakeTheSameTokens) {
  const Json fixture = read_json_file(test::source_path("tests/text/tokenizers/" + GetParam() + ".json"));
  const HfTokenizer files{.tokenizer = fixture["tokenizer"], .config = Json::object()};
  const Tokenizer original = Tokenizer::from_json(write_json(files.tokenizer));
  HfTokenizer named = files;
  if (!original.encode("").ids.empty()) named.config["bos_token"] = *original.id_to_token(original.encode("").ids[0]);
  const test::TemporaryFolder folder;
  const Tokenizer read = through_gguf(folder, named, original.id_end() + 3);
  EXPECT_EQ(read.vocab_size(), original.vocab_size());
  ASSERT_GT(fixture["cases"].size(), 20);
  for (const Json& each : fixture["cases"]) expect_equal(read, original, from_hex(each["hex"]));
}

INSTANTIATE_TEST_SUITE_P(Fixtures, GgufFamilies, testing::Values("qwen", "llama3", "smollm"),
                         [](const auto& each) { return each.param; });

TEST(GgufTokenizer, OfTheTinyModelWithItsTemplate) {
  const fs::path tiny = test::source_path("models/tiny-qwen3");
  const test::TemporaryFolder folder;
  const Tokenizer read = through_gguf(folder, read_hf_tokenizer(tiny), 4096), original = Tokenizer::load(tiny);
  for (const std::string text : {"Hello, it's 1234 o'clock.\r\n\n  <|im_start|>user\nhi<|im_end|>",
                                 "\xCE\xA9 e\xCC\x81 \xF0\x9F\x99\x82 \xFF"}) {
    expect_equal(read, original, text);
  }
  EXPECT_EQ(read.eos_id(), original.eos_id());
  EXPECT_EQ(read.pad_id(), original.pad_id());
  EXPECT_TRUE(read.is_special(4095));
  const ChatRequest request{
      .messages = {{{"role", "user"}, {"content", "hi"}}}, .tools = {}, .add_generation_prompt = true};
  EXPECT_EQ(ChatTemplate::load(folder / "m.gguf")->render(request).text,
            ChatTemplate::load(tiny)->render(request).text);
}

// As llama.cpp cuts text where a file names no way: punctuation first, then words, then numbers in threes from the
// left.
TEST(GgufTokenizer, WithoutANameCutsAsLlamaCppDoes) {
  std::vector<std::string> tokens{"1",
                                  "2",
                                  "3",
                                  "4",
                                  "5",
                                  "a",
                                  "!",
                                  "\xC4\xA0",
                                  "12",
                                  "123",
                                  "1234",
                                  "45",
                                  "a!",
                                  "\xC4\xA0"
                                  "a"};
  const GgufMetadata metadata{
      {"tokenizer.ggml.model", std::string("gpt2")},
      {"tokenizer.ggml.tokens", tokens},
      {"tokenizer.ggml.merges", std::vector<std::string>{"1 2", "12 3", "123 4", "4 5", "a !", "\xC4\xA0 a"}}};
  const test::TemporaryFolder folder;
  GgufWriter(folder / "m.gguf", metadata, {}).finish();
  const Tokenizer tokenizer = Tokenizer::load(folder / "m.gguf");
  std::vector<std::string> found;
  for (const TokenId id : tokenizer.encode("12345 a!").ids) found.push_back(*tokenizer.id_to_token(id));
  EXPECT_EQ(found, (std::vector<std::string>{"123", "45",
                                             "\xC4\xA0"
                                             "a",
                                             "!"}));
}

}  // namespace
}  // namespace nibble::text::gguf_tokenizer_test
