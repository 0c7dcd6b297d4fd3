// Files that are broken or made to harm: each is one DataError that names the place.

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "nibble/base/error.h"
#include "nibble/io/json.h"
#include "nibble/text/tokenizer.h"

namespace nibble::text::tokenizer_hostile_test {
namespace {

Json smallest() {
  return Json::parse(R"({
    "added_tokens": [{"id": 3, "content": "<end>", "special": true}],
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
  })");
}

void expect_error(const std::string& text, const std::string& part, const std::string& config = "") {
  try {
    Tokenizer::from_json(text, config);
    FAIL() << "no error for " << text.substr(0, 200);
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("tokenizer"), std::string::npos) << "names no file: " << error.what();
    EXPECT_LT(std::string(error.what()).size(), 500u);
  }
}

void expect_error(const std::function<void(Json&)>& spoil, const std::string& part) {
  Json json = smallest();
  spoil(json);
  expect_error(json.dump(), part);
}

TEST(HostileTokenizer, TheUnspoiledFileIsFine) {
  EXPECT_EQ(Tokenizer::from_json(smallest().dump()).encode("ab<end>").ids, (std::vector<TokenId>{2, 3}));
}

TEST(HostileTokenizer, BrokenJson) {
  expect_error("", "JSON");
  expect_error("{\"model\": ", "JSON");
  expect_error("[1, 2]", "object");
  expect_error(std::string(1'000'000, '['), "nested");
  expect_error("{}", "model");
}

TEST(HostileTokenizer, Ids) {
  expect_error([](Json& j) { j["model"]["vocab"]["c"] = -1; }, "id -1");
  expect_error([](Json& j) { j["model"]["vocab"]["c"] = 1.5; }, "id 1.5");
  expect_error([](Json& j) { j["model"]["vocab"]["c"] = "x"; }, "integer");
  expect_error([](Json& j) { j["model"]["vocab"]["c"] = 4294967296; }, "4294967296");
  expect_error([](Json& j) { j["model"]["vocab"]["c"] = 2000000000; }, "2000000000");
  expect_error([](Json& j) { j["model"]["vocab"]["c"] = 1; }, "two tokens");
  expect_error([](Json& j) { j["added_tokens"][0]["id"] = 1; }, "id 1");
  expect_error([](Json& j) { j["added_tokens"][0]["id"] = 99999999; }, "99999999");
  expect_error([](Json& j) { j["added_tokens"][0]["id"] = -3; }, "-3");
  expect_error([](Json& j) { j["added_tokens"].push_back({{"id", 3}, {"content", "<other>"}}); }, "two tokens");
  expect_error([](Json& j) { j["added_tokens"].push_back({{"id", 4}, {"content", "<end>"}}); }, "two ids");
  expect_error([](Json& j) { j["added_tokens"].push_back({{"id", 4}, {"content", "ab"}}); }, "in the vocabulary 2");
}

TEST(HostileTokenizer, Merges) {
  expect_error([](Json& j) { j["model"]["merges"].push_back("a z"); }, "merges[1] names the token \"z\"");
  expect_error([](Json& j) { j["model"]["merges"].push_back("b a"); }, "\"ba\"");
  expect_error([](Json& j) { j["model"]["merges"].push_back("ab"); }, "merges[1]");
  expect_error([](Json& j) { j["model"]["merges"].push_back("a b c"); }, "merges[1]");
  expect_error([](Json& j) { j["model"]["merges"].push_back({"a", "b", "a"}); }, "merges[1]");
  expect_error([](Json& j) { j["model"]["merges"].push_back({"a", 1}); }, "merges[1]");
  expect_error([](Json& j) { j["model"]["merges"].push_back({"", "a"}); }, "merges[1]");
  expect_error([](Json& j) { j["model"]["merges"] = "a b"; }, "merges");
  expect_error([](Json& j) { j["model"].erase("vocab"); }, "vocab");
}

TEST(HostileTokenizer, UnsupportedParts) {
  expect_error([](Json& j) { j["model"]["type"] = "Unigram"; }, "only BPE");
  expect_error([](Json& j) { j["model"]["dropout"] = 0.1; }, "dropout");
  expect_error([](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }, "end_of_word_suffix");
  expect_error([](Json& j) { j["normalizer"] = {{"type", "Precompiled"}}; }, "Precompiled");
  expect_error([](Json& j) { j["pre_tokenizer"] = {{"type", "BertPreTokenizer"}}; }, "BertPreTokenizer");
  expect_error([](Json& j) { j["decoder"] = {{"type", "WordPiece"}}; }, "WordPiece");
  expect_error([](Json& j) { j["post_processor"] = {{"type", "Strange"}}; }, "Strange");
  expect_error([](Json& j) { j["normalizer"] = "NFC"; }, "normalizer");
}

void expect_pattern_error(const std::string& pattern, const std::string& part) {
  expect_error(
      [&](Json& j) {
        j["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}};
      },
      part);
}

TEST(HostileTokenizer, Patterns) {
  expect_pattern_error("(a", "not valid");
  expect_pattern_error("a)", "parenthesis");
  expect_pattern_error("[a", "class");
  expect_pattern_error("a\\", "backslash");
  expect_pattern_error("*a", "not valid");
  expect_pattern_error("\\p{Nothing}", "not valid");
  expect_pattern_error("[\\p{L}&&[^a]]", "&&");
  expect_pattern_error("\\u12", "\\u");
  expect_pattern_error("\\C", "not valid");
  expect_pattern_error(std::string(70000, 'a'), "65536");
  expect_pattern_error(std::string(5000, '('), "not valid");
  expect_error([](Json& j) { j["pre_tokenizer"] = {{"type", "Split"}, {"behavior", "Isolated"}}; }, "pattern");
  expect_error(
      [](Json& j) {
        j["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"String", " "}}}, {"behavior", "Sideways"}};
      },
      "Sideways");
}

TEST(HostileTokenizer, APatternThatBacktracksForeverStops) {
  Json json = smallest();
  json["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "(a+)+(x|y)"}}}, {"behavior", "Isolated"}};
  const Tokenizer tokenizer = Tokenizer::from_json(json.dump());
  EXPECT_THROW(tokenizer.encode(std::string(64, 'a')), DataError);
}

TEST(HostileTokenizer, PostProcessors) {
  const Json piece = {{"SpecialToken", {{"id", "<end>"}, {"type_id", 0}}}};
  const Json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const auto with = [](const Json& single, const Json& special) {
    return [=](Json& j) {
      j["post_processor"] = {{"type", "TemplateProcessing"}, {"single", single}, {"special_tokens", special}};
    };
  };
  const Json named = {{"<end>", {{"id", "<end>"}, {"ids", {3}}, {"tokens", {"<end>"}}}}};
  const Json unknown_id = {{"<end>", {{"id", "<end>"}, {"ids", {77}}, {"tokens", {"<end>"}}}}};
  EXPECT_NO_THROW({
    Json json = smallest();
    with(Json::array({text, piece}), named)(json);
    EXPECT_EQ(Tokenizer::from_json(json.dump()).encode("a").ids, (std::vector<TokenId>{0, 3}));
  });
  expect_error(with(Json::array({piece, text}), Json::object()), "special_tokens lacks");
  expect_error(with(Json::array({piece}), named), "0 times");
  expect_error(with(Json::array({text, text}), named), "2 times");
  expect_error(with(Json::array({text, piece}), unknown_id), "77");
}

TEST(HostileTokenizer, Configuration) {
  expect_error(smallest().dump(), "JSON", "{");
  expect_error(smallest().dump(), "eos_token", R"({"eos_token": 5})");
  expect_error(smallest().dump(), "add_bos_token", R"({"add_bos_token": "yes"})");
  expect_error(smallest().dump(), "99999999", R"({"added_tokens_decoder": {"99999999": {"content": "x"}}})");
  expect_error(smallest().dump(), "-1", R"({"added_tokens_decoder": {"-1": {"content": "x"}}})");
  expect_error(smallest().dump(), "two tokens", R"({"added_tokens_decoder": {"3": {"content": "x"}}})");
  expect_error(smallest().dump(), "object", R"({"added_tokens_decoder": {"3": "x"}})");
}

TEST(HostileTokenizer, MissingFolder) { EXPECT_THROW(Tokenizer::load("/nonexistent"), DataError); }

// A model without an unknown token leaves out what it does not know; offsets stay inside the text.
TEST(HostileTokenizer, UnknownCharacters) {
  const Tokenizer tokenizer = Tokenizer::from_json(smallest().dump());
  const Encoding encoding = tokenizer.encode("?a\u4f60b\u597d", {.offsets = true});
  EXPECT_EQ(encoding.ids, std::vector<TokenId>{2});
  for (const ByteSpan span : encoding.offsets) EXPECT_LE(span.end, 9u);
  Json json = smallest();
  json["model"]["unk_token"] = "<nowhere>";
  EXPECT_THROW(Tokenizer::from_json(json.dump()).encode("?"), DataError);
}

}  // namespace
}  // namespace nibble::text::tokenizer_hostile_test
