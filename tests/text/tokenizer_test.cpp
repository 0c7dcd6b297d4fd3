#include "nibble/text/tokenizer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/io/json.h"
#include "tests/support/files.h"

namespace nibble::text::tokenizer_test {
namespace {

const std::string root = NIBBLE_SOURCE_DIR;

Tokenizer shipped() { return Tokenizer::load(root + "/models/tiny-qwen3"); }

Tokenizer family(const std::string& name) {
  return Tokenizer::from_json(read_json_file(root + "/tests/text/tokenizers/" + name + ".json")["tokenizer"].dump());
}

// The least tokenizer: the letters a to d, "ab", "cd", "abcd", and an added token.
Json small() {
  return Json::parse(R"({
    "version": "1.0",
    "added_tokens": [{"id": 7, "content": "<end>", "special": true, "normalized": false}],
    "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "d": 3, "ab": 4, "cd": 5, "abcd": 6},
              "merges": ["a b", ["c", "d"], "ab cd"]}
  })");
}

TEST(Tokenizer, NamesTokens) {
  const Tokenizer tokenizer = shipped();
  EXPECT_EQ(tokenizer.vocab_size(), 4096u);
  EXPECT_EQ(tokenizer.id_end(), 4096u);
  EXPECT_EQ(tokenizer.token_to_id("<|im_end|>"), 4095u);
  EXPECT_EQ(tokenizer.id_to_token(4094), "<|im_start|>");
  EXPECT_EQ(tokenizer.id_to_token(4096), std::nullopt);
  EXPECT_EQ(tokenizer.token_to_id("no such token"), std::nullopt);
  EXPECT_TRUE(tokenizer.is_special(4095));
  EXPECT_FALSE(tokenizer.is_special(0));
  EXPECT_FALSE(tokenizer.is_special(1u << 31));
  EXPECT_EQ(tokenizer.eos_id(), 4095u);
  EXPECT_EQ(tokenizer.pad_id(), 4093u);
  EXPECT_EQ(tokenizer.bos_id(), std::nullopt);
}

TEST(Tokenizer, SpecialTokensInTextAreParsedOrNot) {
  const Tokenizer tokenizer = shipped();
  EXPECT_EQ(tokenizer.encode("<|im_end|>").ids, std::vector<TokenId>{4095});
  const auto plain = tokenizer.encode("<|im_end|>", {.parse_special = false}).ids;
  EXPECT_GT(plain.size(), 1u);
  for (const TokenId id : plain) EXPECT_FALSE(tokenizer.is_special(id));
  EXPECT_EQ(tokenizer.decode(plain), "<|im_end|>");
}

TEST(Tokenizer, BrokenUtf8IsReplacedAndCounted) {
  const Tokenizer tokenizer = shipped();
  EXPECT_EQ(tokenizer.encode("fine \xE2\x82\xAC").replaced, 0u);
  const std::string text = "a\xFF\xFE z\xF0\x9F\x98 end\xC3";
  const Encoding encoding = tokenizer.encode(text, {.offsets = true});
  EXPECT_EQ(encoding.replaced, 4u);
  EXPECT_EQ(encoding.ids, tokenizer.encode("a\uFFFD\uFFFD z\uFFFD end\uFFFD").ids);
  ASSERT_EQ(encoding.offsets.size(), encoding.ids.size());
  EXPECT_EQ(encoding.offsets.front().begin, 0u);
  EXPECT_EQ(encoding.offsets.back(), (ByteSpan{12, 13})) << "the last broken byte, not the three of its replacement";
}

// The tokens' bytes are those of their places, and together they are the text.
TEST(Tokenizer, OffsetsCoverTheText) {
  const Tokenizer tokenizer = shipped();
  const std::string text = "Define \"caf\u00e9\", \u4f60\u597d \U0001F600!\n\n  <|im_end|>   x";
  const Encoding encoding = tokenizer.encode(text, {.offsets = true});
  std::uint32_t at = 0;
  for (std::size_t i = 0; i < encoding.ids.size(); ++i) {
    const ByteSpan span = encoding.offsets[i];
    EXPECT_EQ(span.begin, at);
    EXPECT_EQ(text.substr(span.begin, span.end - span.begin), tokenizer.token_bytes(encoding.ids[i]));
    at = span.end;
  }
  EXPECT_EQ(at, text.size());
}

TEST(Tokenizer, OffsetsOfComposedCharactersAreTheirSources) {
  const Tokenizer tokenizer = shipped();
  // e and a combining acute compose; their tokens all have the three bytes.
  const Encoding encoding = tokenizer.encode("xe\xCC\x81y", {.offsets = true});
  EXPECT_EQ(encoding.ids, tokenizer.encode("x\u00e9y").ids);
  for (const ByteSpan span : encoding.offsets) {
    EXPECT_TRUE(span == (ByteSpan{0, 1}) || span == (ByteSpan{1, 4}) || span == (ByteSpan{4, 5}) ||
                span == (ByteSpan{0, 4}) || span == (ByteSpan{1, 5}))
        << span.begin << ' ' << span.end;
  }
  EXPECT_EQ(encoding.offsets.back().end, 5u);
}

TEST(Tokenizer, InsertedTokensHaveEmptyPlaces) {
  const Tokenizer tokenizer = family("llama2");
  const Encoding encoding = tokenizer.encode("\u00e9", {.offsets = true});  // bos, the inserted mark, the character
  ASSERT_GE(encoding.ids.size(), 3u);
  EXPECT_EQ(encoding.ids[0], 1u);
  EXPECT_EQ(encoding.offsets[0], (ByteSpan{0, 0}));
  EXPECT_EQ(encoding.offsets[1], (ByteSpan{0, 0}));
  EXPECT_EQ(encoding.offsets.back().end, 2u);
}

TEST(Tokenizer, ConfigurationTurnsBosOnAndOff) {
  Json json = small();
  json["added_tokens"].push_back({{"id", 8}, {"content", "<s>"}, {"special", true}});
  const std::string config =
      R"({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "<end>", "add_bos_token": %})";
  const auto with = [&](const std::string& value) {
    return Tokenizer::from_json(json.dump(), std::string(config).replace(config.find('%'), 1, value));
  };
  EXPECT_EQ(with("true").encode("ab").ids, (std::vector<TokenId>{8, 4}));
  EXPECT_EQ(with("true").encode("ab", {.add_special_tokens = false}).ids, std::vector<TokenId>{4});
  EXPECT_EQ(with("false").encode("ab").ids, std::vector<TokenId>{4});
  EXPECT_EQ(with("true").bos_id(), 8u);
  EXPECT_EQ(with("true").eos_id(), 7u);
}

TEST(Tokenizer, ConfigurationAddsTokens) {
  const std::string config =
      R"({"added_tokens_decoder": {"9": {"content": "<x>", "special": true, "normalized": false}}})";
  const Tokenizer tokenizer = Tokenizer::from_json(small().dump(), config);
  EXPECT_EQ(tokenizer.encode("ab<x>cd").ids, (std::vector<TokenId>{4, 9, 5}));
  EXPECT_EQ(tokenizer.id_end(), 10u);
  EXPECT_EQ(tokenizer.vocab_size(), 9u);
}

TEST(Tokenizer, AgreesOverThreads) {
  const Tokenizer tokenizer = shipped();
  std::string text;
  for (int i = 0; i < 3000; ++i) text += fmt::format("word{} of {}; ", i * 7919 % 3001, i);
  const auto expected = tokenizer.encode(text).ids;
  std::vector<std::vector<TokenId>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) threads.emplace_back([&] { result = tokenizer.encode(text).ids; });
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, expected);
}

// Merges up to a run of 64; a text of one word makes the queue work. Quadratic merging would take hours here.
TEST(Tokenizer, OneLongWordTakesLittleTime) {
  Json json = small();
  std::string run = "a";
  for (TokenId id = 10; run.size() < 64; ++id) {
    json["model"]["merges"].push_back({run, run});
    run += run;
    json["model"]["vocab"][run] = id;
  }
  json["model"]["fuse_unk"] = true;
  const Tokenizer tokenizer = Tokenizer::from_json(json.dump());
  const auto start = std::chrono::steady_clock::now();
  const auto ids = tokenizer.encode(std::string(1'000'000, 'a')).ids;
  EXPECT_EQ(ids, std::vector<TokenId>(1'000'000 / 64, 15));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST(Tokenizer, ManyMarksTakeLittleTime) {
  std::string text = "a";
  for (int i = 0; i < 100'000; ++i)
    text += i % 2 == 0 ? "\xCC\x81" : "\xCC\xA3";  // above, below: all must be reordered
  const auto start = std::chrono::steady_clock::now();
  EXPECT_FALSE(shipped().encode(text).ids.empty());
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST(StreamDecoder, GivesOutWholeCharactersAtOnce) {
  const Tokenizer tokenizer = shipped();
  const std::string text = "a\u00e9\u4f60\U0001F600\uFFFD\uFFFD!";
  const auto ids = tokenizer.encode(text).ids;
  StreamDecoder decoder(tokenizer);
  std::string bytes;
  std::string shown;
  for (const TokenId id : ids) {
    bytes += tokenizer.token_bytes(id);
    shown += decoder.push(id);
    // Every character that is complete has been shown, and nothing else.
    std::size_t whole = bytes.size();
    while (whole > 0 && text.compare(0, whole, bytes, 0, whole) == 0 && whole < text.size() &&
           (static_cast<unsigned char>(text[whole]) & 0xC0) == 0x80) {
      --whole;
    }
    EXPECT_EQ(shown, text.substr(0, whole));
  }
  EXPECT_EQ(decoder.finish(), "");
  EXPECT_EQ(shown, text);
}

TEST(StreamDecoder, EndsAPartialCharacter) {
  const Tokenizer tokenizer = shipped();
  auto ids = tokenizer.encode("ok \U0001F600").ids;
  ids.pop_back();
  StreamDecoder decoder(tokenizer);
  std::string shown;
  for (const TokenId id : ids) shown += decoder.push(id);
  EXPECT_EQ(shown, "ok ");
  EXPECT_EQ(decoder.finish(), "\uFFFD");
}

TEST(Tokenizer, SaysWhatMakesATokenizerJsonOfSentencePiece) {
  const nibble::test::TemporaryFolder folder;
  nibble::test::expect_error<DataError>([&] { Tokenizer::load(folder.path()); }, "tokenizer.json", "must have a tokenizer.json");
  folder.write("tokenizer.model", "\n\x0e");
  nibble::test::expect_error<DataError>([&] { Tokenizer::load(folder.path()); }, "tokenizer.model of SentencePiece alone", "save_pretrained('FOLDER')");
}

TEST(StreamDecoder, KeepsSpacesOfWords) {
  for (const char* name : {"llama2", "mistral", "gemma", "metaspace", "gpt2"}) {
    const Tokenizer tokenizer = family(name);
    const auto ids = tokenizer.encode(" the  state of being sober \u4f60", {.add_special_tokens = false}).ids;
    StreamDecoder decoder(tokenizer);
    std::string shown;
    for (const TokenId id : ids) shown += decoder.push(id);
    EXPECT_EQ(shown + decoder.finish(), tokenizer.decode(ids)) << name;
  }
}

}  // namespace
}  // namespace nibble::text::tokenizer_test
