// Tokenizers in the manner of public families, held against what Python's `tokenizers` does
// (make_tokenizer_fixtures.py).

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "nibble/io/json.h"
#include "nibble/text/tokenizer.h"

namespace nibble::text::tokenizer_fixture_test {
namespace {

const std::string root = NIBBLE_SOURCE_DIR;

Json read_fixture(const std::string& name) { return read_json_file(root + "/tests/text/tokenizers/" + name); }

std::string from_hex(const std::string& hex) {
  std::string out;
  for (std::size_t i = 0; i < hex.size(); i += 2)
    out.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  return out;
}

// `tokenizers` counts in whole characters: a token that is part of one has all of it.
ByteSpan whole_characters(const std::string& text, ByteSpan span) {
  const auto inside = [&](std::uint32_t at) {
    return at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80;
  };
  while (inside(span.begin)) --span.begin;
  while (inside(span.end)) ++span.end;
  return span;
}

void check_offsets(const Json& expected, const std::string& text, const Encoding& encoding) {
  ASSERT_EQ(encoding.offsets.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const ByteSpan span = whole_characters(text, encoding.offsets[i]);
    EXPECT_EQ(span.begin, expected[i][0].get<std::uint32_t>()) << "token " << i;
    EXPECT_EQ(span.end, expected[i][1].get<std::uint32_t>()) << "token " << i;
  }
}

void check_case(const Tokenizer& tokenizer, const Json& expected) {
  const std::string text = from_hex(expected["hex"]);
  SCOPED_TRACE(text);
  const auto ids = expected["ids"].get<std::vector<TokenId>>();
  const Encoding encoding = tokenizer.encode(text, {.offsets = true});
  EXPECT_EQ(encoding.ids, ids);
  EXPECT_EQ(tokenizer.encode(text).ids, ids) << "without offsets";
  EXPECT_EQ(encoding.offsets.size(), encoding.ids.size());
  if (expected.contains("offsets")) check_offsets(expected["offsets"], text, encoding);

  const auto bare = tokenizer.encode(text, {.add_special_tokens = false}).ids;
  const auto plain = tokenizer.encode(text, {.add_special_tokens = false, .parse_special = false}).ids;
  EXPECT_EQ(plain, expected.contains("plain_ids") ? expected["plain_ids"].get<std::vector<TokenId>>() : bare);

  EXPECT_EQ(tokenizer.decode(ids), expected["text"].get<std::string>());
  EXPECT_EQ(tokenizer.decode(ids, {.skip_special_tokens = true}), expected["text_without_special"].get<std::string>());
}

class Family : public testing::TestWithParam<const char*> {};

TEST_P(Family, EncodesAndDecodesAsPython) {
  const Json fixture = read_fixture(GetParam() + std::string(".json"));
  const Tokenizer tokenizer = Tokenizer::from_json(fixture["tokenizer"].dump());
  ASSERT_GE(fixture["cases"].size(), 50u);
  for (const Json& expected : fixture["cases"]) check_case(tokenizer, expected);
}

INSTANTIATE_TEST_SUITE_P(Tokenizer, Family,
                         testing::Values("qwen", "llama3", "gpt2", "smollm", "falcon", "deepseek", "tekken", "llama2",
                                         "mistral", "gemma", "metaspace", "words"),
                         [](const auto& family) { return std::string(family.param); });

TEST(Tokenizer, ShippedModelEncodesAndDecodesAsPython) {
  const Tokenizer tokenizer = Tokenizer::load(root + "/models/tiny-qwen3");
  const Json fixture = read_fixture("tiny-qwen3.cases.json");
  ASSERT_GE(fixture["cases"].size(), 50u);
  for (const Json& expected : fixture["cases"]) check_case(tokenizer, expected);
}

}  // namespace
}  // namespace nibble::text::tokenizer_fixture_test
