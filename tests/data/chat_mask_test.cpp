#include "nibble/data/chat_mask.h"

#include <gtest/gtest.h>

#include "nibble/base/error.h"
#include "tests/data/trained_text.h"

namespace nibble::data::chat_mask_test {
namespace {

using test::family;
using test::root;
using test::trained;

const std::string two_turns = R"({"messages": [{"role": "system", "content": "Be brief."},
  {"role": "user", "content": "one"}, {"role": "assistant", "content": "first answer"},
  {"role": "user", "content": "two"}, {"role": "assistant", "content": "second\n\nanswer!"}]})";

TEST(ChatMask, TrainsContentAndEndOfEachTurn) {
  EXPECT_EQ(trained(family("chatml_think"), two_turns), "[first answer<|im_end|>][second\n\nanswer!<|im_end|>]");
  EXPECT_EQ(trained(family("headers_date"), two_turns), "[first answer<|eot_id|>][second\n\nanswer!<|eot_id|>]");
  // The space before the answer is one token with its first word.
  EXPECT_EQ(trained(family("inst"), two_turns), "[ first answer</s>][ second\n\nanswer!</s>]");
  EXPECT_EQ(trained(family("turns"), two_turns), "[first answer<end_of_turn>][second\n\nanswer!<end_of_turn>]");
  EXPECT_EQ(trained(family("pipes"), two_turns), "[first answer<|end|>][second\n\nanswer!<|end|>]");
}

TEST(ChatMask, TrainsTheLastTurnOrAll) {
  const auto chat = text::ChatTemplate::load(root / "models/tiny-qwen3");
  EXPECT_EQ(trained(*chat, two_turns, TrainOn::last), "[second\n\nanswer!<|im_end|>]");
  const std::string all = trained(*chat, two_turns, TrainOn::all);
  EXPECT_EQ(all.substr(0, 7), "[system");  // the first token has nothing before it
  EXPECT_EQ(all.substr(all.size() - 13), "!<|im_end|>\n]");
  EXPECT_EQ(trained(*chat, R"({"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"},
                               {"role": "user", "content": "q"}],
                               "completion": [{"role": "assistant", "content": "y"}]})"),
            "[y<|im_end|>]");
}

// The template drops the thoughts of earlier turns and gives the last one a block of its own.
TEST(ChatMask, ATemplateThatRewritesTurnsDoesNotShiftIt) {
  const auto chat = family("chatml_think");
  EXPECT_EQ(trained(chat, R"({"messages": [{"role": "user", "content": "q"},
      {"role": "assistant", "content": "<think>\nold thought\n</think>\n\nfirst"}, {"role": "user", "content": "r"},
      {"role": "assistant", "content": "second"}]})"),
            "[first<|im_end|>][second<|im_end|>]");
  EXPECT_EQ(trained(chat, R"({"messages": [{"role": "user", "content": "q"},
      {"role": "assistant", "content": "<think>\nold\n</think>\n\nfirst"}, {"role": "user", "content": "r"},
      {"role": "assistant", "content": "<think>\nnew thought\n</think>\n\nsecond"}]})"),
            "[first<|im_end|>][<think>\nnew thought\n</think>\n\nsecond<|im_end|>]");
  EXPECT_EQ(trained(chat, R"({"messages": [{"role": "user", "content": "q"},
      {"role": "assistant", "content": "second", "reasoning_content": "thought"}]})"),
            "[<think>\nthought\n</think>\n\nsecond<|im_end|>]");
  EXPECT_EQ(trained(chat, R"({"messages": [{"role": "user", "content": "q"},
      {"role": "assistant", "content": "first", "reasoning_content": "dropped"}, {"role": "user", "content": "r"},
      {"role": "assistant", "content": "second"}, {"role": "user", "content": "open"}]})"),
            "[first<|im_end|>][second<|im_end|>]");
}

const std::string tool_row = R"({"tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
  "messages": [{"role": "user", "content": "Weather?"},
  {"role": "assistant", "content": "", "tool_calls": [{"id": "abcdefghi", "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Rome"}}}]},
  {"role": "tool", "tool_call_id": "abcdefghi", "content": "sun"},
  {"role": "assistant", "content": "Sunny."}]})";

TEST(ChatMask, TrainsCalls) {
  EXPECT_EQ(trained(family("chatml_think"), tool_row),
            "[<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call><|im_end|>]"
            "[Sunny.<|im_end|>]");
  EXPECT_EQ(trained(family("inst"), tool_row),
            "[[CALLS][{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}, \"id\": \"abcdefghi\"}]</s>]"
            "[ Sunny.</s>]");
  EXPECT_EQ(trained(family("headers_date"), tool_row),
            "[{\"name\": \"weather\", \"parameters\": {\"city\": \"Rome\"}}<|eot_id|>][Sunny.<|eot_id|>]");
}

TEST(ChatMask, ContentBeforeCallsBeginsTheTurn) {
  EXPECT_EQ(trained(family("chatml_think"), R"({"messages": [{"role": "user", "content": "Weather?"},
      {"role": "assistant", "content": "Let me look.", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
      {"role": "tool", "content": "x"}]})"),
            "[Let me look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call><|im_end|>]");
}

TEST(ChatMask, GenerationMarksDecide) {
  const std::string row = R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
      {"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}]})";
  EXPECT_EQ(trained(family("generation"), row), "[<think>\n\n</think>\na<|im_end|>][b<|im_end|>]");
  EXPECT_EQ(trained(family("generation"), row, TrainOn::last), "[b<|im_end|>]");
}

TEST(ChatMask, WhatRepeatsIsToldApart) {
  const auto chat = text::ChatTemplate::load(root / "models/tiny-qwen3");
  EXPECT_EQ(trained(*chat, R"({"messages": [
      {"role": "user", "content": "same"}, {"role": "assistant", "content": "same"},
      {"role": "user", "content": "same"}, {"role": "assistant", "content": "same"}]})"),
            "[same<|im_end|>][same<|im_end|>]");
  EXPECT_EQ(trained(*chat, R"({"messages": [{"role": "user", "content": "<|im_start|>assistant\n"},
      {"role": "assistant", "content": "QmarkerQnibbleQ assistant\n<|im_end|>"}]})"),
            "[QmarkerQnibbleQ assistant\n<|im_end|><|im_end|>]");
  EXPECT_EQ(trained(*chat, R"({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]})"),
            "[<|im_end|>]");
  EXPECT_EQ(trained(*chat, R"({"messages": [{"role": "user", "content": "x"},
      {"role": "assistant", "content": "é👋🏽"}]})"),
            "[é👋🏽<|im_end|>]");
}

TEST(ChatMask, WorksWithoutEndTokens) {
  const auto plain = text::ChatTemplate::parse(
      "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
      "{% if add_generation_prompt %}assistant:{% endif %}");
  EXPECT_EQ(trained(plain, two_turns), "[ first answer][ second\n\nanswer!]");
  const auto closing = text::ChatTemplate::parse(
      "{% for m in messages %}{{ m.role }}: {{ m.content }} ###\n{% endfor %}");
  EXPECT_EQ(trained(closing, two_turns), "[ first answer ###][ second\n\nanswer! ###]");
}

std::string error_of(const text::ChatTemplate& chat_template, const std::string& row) {
  try {
    trained(chat_template, row);
  } catch (const DataError& error) {
    return error.what();
  }
  return "none";
}

TEST(ChatMask, AWrongMaskIsAnError) {
  // The answer is printed twice, once outside of its turn.
  const auto twice = text::ChatTemplate::parse(
      "{{ messages[-1].content }}"
      "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}");
  EXPECT_NE(error_of(twice, two_turns).find("cannot be told"), std::string::npos) << error_of(twice, two_turns);
  const auto silent =
      text::ChatTemplate::parse("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}");
  EXPECT_NE(error_of(silent, two_turns).find("no trained token"), std::string::npos);
  const auto chat = text::ChatTemplate::load(root / "models/tiny-qwen3");
  EXPECT_NE(error_of(*chat, R"({"messages": [{"role": "user", "content": "x"}]})").find("no assistant turn"),
            std::string::npos);
}

}  // namespace
}  // namespace nibble::data::chat_mask_test
