#include <gtest/gtest.h>

#include "nibble/base/error.h"
#include "tests/data/trained_text.h"

namespace nibble::data::message_flags_test {
namespace {

using test::family;
using test::trained;

// Three answers; the first and the second carry what stands in for %.
std::string chat(const std::string& first, const std::string& second) {
  return R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "one")" + first +
         R"(}, {"role": "user", "content": "r"}, {"role": "assistant", "content": "two")" + second +
         R"(}, {"role": "user", "content": "s"}, {"role": "assistant", "content": "three"}]})";
}

TEST(MessageFlags, LeaveAnswersOut) {
  for (const char* name : {"chatml_think", "headers_date", "inst"}) {
    const auto shape = family(name);
    const std::string all = trained(shape, chat("", ""));
    const std::string without = trained(shape, chat(R"(, "train": false)", R"(, "train": true)"));
    EXPECT_EQ(without, all.substr(all.find("][") + 1)) << name;
    EXPECT_EQ(trained(shape, chat(R"(, "weight": 0)", R"(, "weight": 1)")), without) << name;
    EXPECT_EQ(trained(shape, chat(R"(, "weight": 0.0)", R"(, "weight": null, "train": null)")), without) << name;
  }
}

TEST(MessageFlags, DecideBeforeTrainOn) {
  const auto shape = family("chatml_think");
  EXPECT_EQ(trained(shape, chat(R"(, "train": true)", ""), TrainOn::last), "[one<|im_end|>][three<|im_end|>]");
  const std::string all = trained(shape, chat(R"(, "train": false)", ""), TrainOn::all);
  EXPECT_EQ(all.find("one"), std::string::npos) << all;
  EXPECT_NE(all.find("two"), std::string::npos) << all;
  EXPECT_NE(all.find("q<|im_end|>\n<|im_start|>assistant\n]"), std::string::npos) << all;
  // A user's turn too, and an answer of the prompt.
  EXPECT_EQ(trained(shape, R"({"messages": [{"role": "user", "content": "q", "train": true},
                                {"role": "assistant", "content": "a"}]})"),
            "[q<|im_end|>][a<|im_end|>]");
  EXPECT_EQ(trained(shape, R"({"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 1},
                                {"role": "user", "content": "r"}], "completion": [{"role": "assistant", "content": "b"}]})"),
            "[a<|im_end|>][b<|im_end|>]");
}

TEST(MessageFlags, HoldWithGenerationMarksAndInConversations) {
  EXPECT_EQ(trained(family("generation"), R"({"messages": [{"role": "user", "content": "q", "train": true},
      {"role": "assistant", "content": "a", "train": false}, {"role": "user", "content": "r"},
      {"role": "assistant", "content": "b"}]})"),
            "[q<|im_end|>][b<|im_end|>]");
  EXPECT_EQ(trained(family("chatml_think"), R"({"conversations": [{"from": "human", "value": "q", "weight": 0.0},
      {"from": "gpt", "value": "a", "weight": 0.0}, {"from": "human", "value": "r"}, {"from": "gpt", "value": "b", "weight": 1.0}]})"),
            "[b<|im_end|>]");
}

TEST(MessageFlags, AreNotShownToTheTemplate) {
  const auto shape = text::ChatTemplate::parse("{% for m in messages %}{{ m | tojson }}<|im_end|>{% endfor %}");
  const std::string text = trained(shape, chat(R"(, "train": true)", R"(, "weight": 1)"), TrainOn::all);
  EXPECT_EQ(text.find("train"), std::string::npos) << text;
  EXPECT_EQ(text.find("weight"), std::string::npos) << text;
}

std::string error_of(const std::string& row) {
  try {
    trained(family("chatml_think"), row);
  } catch (const DataError& error) {
    return error.what();
  }
  return "none";
}

TEST(MessageFlags, AreCheckedOneByOne) {
  EXPECT_NE(error_of(chat(R"(, "weight": 0.5)", "")).find("\"weight\" of message 1 is 0.5; 1 or 0"), std::string::npos);
  EXPECT_NE(error_of(chat("", R"(, "weight": "1")")).find("\"weight\" of message 3 is \"1\""), std::string::npos);
  EXPECT_NE(error_of(chat(R"(, "train": 1)", "")).find("\"train\" of message 1 is 1; true or false"), std::string::npos);
  EXPECT_NE(error_of(chat(R"(, "train": true, "weight": 0)", "")).find("contradict"), std::string::npos);
  EXPECT_NE(error_of(R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "train": false}]})")
                .find("leave"),
            std::string::npos);
}

TEST(MessageFlags, OfPreferencesStayInTheAnswers) {
  const std::string pair = R"({"prompt": [{"role": "user", "content": "q"%}], "chosen": [{"role": "assistant", "content": "a"},
      {"role": "user", "content": "r"}, {"role": "assistant", "content": "b", "train": false}],
      "rejected": [{"role": "assistant", "content": "c"}]})";
  const auto with = [&](const std::string& flag) { return std::string(pair).replace(pair.find('%'), 1, flag); };
  EXPECT_EQ(trained(family("chatml_think"), with("")), "[a<|im_end|>][c<|im_end|>]");
  EXPECT_NE(error_of(with(R"(, "train": true)")).find("Message 0 is of the prompt"), std::string::npos);
}

}  // namespace
}  // namespace nibble::data::message_flags_test
