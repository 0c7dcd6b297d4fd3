#include "nibble/data/think.h"

#include <gtest/gtest.h>

#include "nibble/base/error.h"
#include "tests/data/trained_text.h"

namespace nibble::data::think_test {
namespace {

using test::family;
using test::trained;

OrderedJson row_of(const std::string& row) { return parse_row(row); }

std::string text_of(const text::ChatTemplate& shape, const std::string& row, Think think) {
  const ChatMask mask(test::tokenizer(), shape, OrderedJson::object(), think);
  return mask.apply(std::get<Chat>(read_row(row_of(row), RowForm::messages)), TrainOn::all).text;
}

std::string prompt_of(const text::ChatTemplate& shape, const std::string& row, Think think) {
  return ChatMask(test::tokenizer(), shape, OrderedJson::object(), think)
      .prompt(std::get<Chat>(read_row(row_of(row), RowForm::messages)));
}

// Thoughts in the content, beside it, an empty block, none.
const std::string four = R"({"messages": [
  {"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>\nold thought\n</think>\n\nfirst"},
  {"role": "user", "content": "r"}, {"role": "assistant", "reasoning_content": "other thought", "content": "second"},
  {"role": "user", "content": "s"}, {"role": "assistant", "content": "<think>\n\n</think>\n\nthird"},
  {"role": "user", "content": "t"}, {"role": "assistant", "content": "fourth"}]})";

std::string turn(const std::string& role, const std::string& content) { return "<|im_start|>" + role + "\n" + content + "<|im_end|>\n"; }

std::string four_turns(const std::string& a, const std::string& b, const std::string& c, const std::string& d) {
  return turn("user", "q") + turn("assistant", a + "first") + turn("user", "r") + turn("assistant", b + "second") + turn("user", "s") +
         turn("assistant", c + "third") + turn("user", "t") + turn("assistant", d + "fourth");
}

const std::string empty = "<think>\n\n</think>\n\n";

TEST(Think, KeepHasTheRowsThoughtsInEveryTurn) {
  const auto shape = family("chatml_think");
  EXPECT_EQ(text_of(shape, four, Think::keep),
            four_turns("<think>\nold thought\n</think>\n\n", "<think>\nother thought\n</think>\n\n", empty, ""));
  EXPECT_EQ(trained(shape, four, TrainOn::assistant, Think::keep),
            "[<think>\nold thought\n</think>\n\nfirst<|im_end|>][<think>\nother thought\n</think>\n\nsecond<|im_end|>]"
            "[" + empty + "third<|im_end|>][fourth<|im_end|>]");
  EXPECT_EQ(trained(shape, four, TrainOn::last, Think::keep), "[fourth<|im_end|>]");
}

TEST(Think, StripHasNone) {
  const auto shape = family("chatml_think");
  EXPECT_EQ(text_of(shape, four, Think::strip), four_turns("", "", "", ""));
  EXPECT_EQ(trained(shape, four, TrainOn::assistant, Think::strip),
            "[first<|im_end|>][second<|im_end|>][third<|im_end|>][fourth<|im_end|>]");
}

TEST(Think, EmptyGivesEachAnswerABlockAndCountsTheRowsOwn) {
  const auto shape = family("chatml_think");
  EXPECT_EQ(text_of(shape, four, Think::empty), four_turns(empty, empty, empty, empty));
  EXPECT_EQ(trained(shape, four, TrainOn::assistant, Think::empty),
            "[first<|im_end|>][second<|im_end|>][" + empty + "third<|im_end|>][fourth<|im_end|>]");
}

TEST(Think, StockIsWhatTheTemplatePrints) {
  const auto shape = family("chatml_think");
  EXPECT_EQ(text_of(shape, four, Think::stock), four_turns("", "", "", empty));
  EXPECT_EQ(trained(shape, four), "[first<|im_end|>][second<|im_end|>][third<|im_end|>][fourth<|im_end|>]");
}

TEST(Think, GoesWithCallsAndFlags) {
  const std::string row = R"({"messages": [{"role": "user", "content": "Weather?"},
      {"role": "assistant", "content": "<think>\nlook\n</think>\n\n", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
      {"role": "tool", "content": "sun"}, {"role": "assistant", "content": "<think>\ngood\n</think>\n\nSunny.", "train": false},
      {"role": "user", "content": "More?"}, {"role": "assistant", "content": "No."}]})";
  const std::string call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";
  const auto shape = family("chatml_think");
  EXPECT_EQ(trained(shape, row, TrainOn::assistant, Think::keep), "[<think>\nlook\n</think>\n\n" + call + "<|im_end|>][No.<|im_end|>]");
  EXPECT_EQ(trained(shape, row, TrainOn::assistant, Think::strip), "[" + call + "<|im_end|>][No.<|im_end|>]");
  EXPECT_NE(text_of(shape, row, Think::keep).find("<think>\ngood\n</think>\n\nSunny."), std::string::npos);
}

// The template of this family marks a block of its own as generated.
TEST(Think, ReplacesBlocksInsideOfGenerationMarks) {
  const auto shape = family("generation");
  const std::string row = R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
      {"role": "user", "content": "r"}, {"role": "assistant", "reasoning_content": "why", "content": "b"}]})";
  const std::string stripped = trained(shape, row, TrainOn::assistant, Think::strip);
  EXPECT_EQ(stripped, "[a<|im_end|>][b<|im_end|>]");
  const std::string kept = trained(shape, row, TrainOn::assistant, Think::keep);
  EXPECT_TRUE(kept.starts_with("[a<|im_end|>][<think>")) << kept;
  EXPECT_TRUE(kept.ends_with("b<|im_end|>]")) << kept;
}

TEST(Think, LeavesOrdinaryTextAlone) {
  const auto shape = family("chatml_think");
  const std::string row = R"({"messages": [{"role": "user", "content": "q"},
      {"role": "assistant", "content": "It opens with <think> and goes on."}]})";
  EXPECT_EQ(trained(shape, row, TrainOn::assistant, Think::strip), "[It opens with <think> and goes on.<|im_end|>]");
}

TEST(Think, PromptsEndAsTheModelIsAsked) {
  const auto shape = family("chatml_think");
  const std::string row = R"({"messages": [{"role": "user", "content": "q"},
      {"role": "assistant", "content": "<think>\nold\n</think>\n\nfirst"}, {"role": "user", "content": "r"}]})";
  const std::string asked = "<|im_start|>assistant\n";
  const auto history = [](const std::string& block) {
    return turn("user", "q") + turn("assistant", block + "first") + turn("user", "r");
  };
  EXPECT_EQ(prompt_of(shape, row, Think::stock), history("") + asked);
  EXPECT_EQ(prompt_of(shape, row, Think::strip), history("") + asked);
  EXPECT_EQ(prompt_of(shape, row, Think::keep), history("<think>\nold\n</think>\n\n") + asked);
  EXPECT_EQ(prompt_of(shape, row, Think::empty), history(empty) + asked + empty);
}

// Templates of models that always think open the block in the prompt; then its tag is not the model's to write.
TEST(Think, ABlockThatThePromptOpensIsNotCountedWhole) {
  const auto shape = text::ChatTemplate::parse(
      "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1].lstrip('\\n') }}<|im_end|>\n{% endfor %}"
      "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}");
  const std::string row = R"({"messages": [{"role": "user", "content": "q"},
      {"role": "assistant", "content": "thought\n</think>\n\na"}, {"role": "user", "content": "r"},
      {"role": "assistant", "content": "<think>\nmore\n</think>\n\nb"}]})";
  EXPECT_EQ(trained(shape, row, TrainOn::assistant, Think::keep),
            "[thought\n</think>\n\na<|im_end|>][more\n</think>\n\nb<|im_end|>]");
  EXPECT_NE(text_of(shape, row, Think::keep).find("assistant\n<think>\nthought\n</think>\n\na"), std::string::npos);
  const std::string asked = R"({"messages": [{"role": "user", "content": "q"}]})";
  EXPECT_TRUE(prompt_of(shape, asked, Think::empty).ends_with("assistant\n" + empty));
}

TEST(Think, IsRefusedWhereTheTemplateKnowsNone) {
  for (const Think think : {Think::keep, Think::strip, Think::empty}) {
    EXPECT_THROW(ChatMask(test::tokenizer(), family("headers_date"), OrderedJson::object(), think), UsageError);
    EXPECT_THROW(RowEncoder(test::tokenizer(), nullptr, TrainOn::assistant, OrderedJson::object(), think), UsageError);
  }
  EXPECT_THROW(think_of("drop"), UsageError);
  EXPECT_EQ(think_of("empty"), Think::empty);
}

}  // namespace
}  // namespace nibble::data::think_test
