#include "nibble/data/row.h"

#include <gtest/gtest.h>

#include "nibble/base/error.h"

namespace nibble::data::row_test {
namespace {

RowContent row_of_line(std::string_view line) {
  const OrderedJson row = parse_row(line);
  return read_row(row, detect_row_form(row));
}

std::string chat_of(std::string_view line) {
  const RowContent content = row_of_line(line);
  std::string result;
  for (const OrderedJson& turn : std::get<Chat>(content).messages) {
    result += turn["role"].get<std::string>() + ":" + turn.value("content", "-") + ";";
  }
  return result;
}

TEST(Row, ReadsEachForm) {
  EXPECT_EQ(chat_of(R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})"),
            "user:q;assistant:a;");
  EXPECT_EQ(chat_of(R"({"instruction": "do", "output": "done"})"), "user:do;assistant:done;");
  EXPECT_EQ(chat_of(R"({"instruction": "do", "input": "this", "output": "done"})"), "user:do\n\nthis;assistant:done;");
  EXPECT_EQ(chat_of(R"({"instruction": "do", "input": "", "response": "ok", "system": "be"})"),
            "system:be;user:do;assistant:ok;");
  EXPECT_EQ(chat_of(R"({"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"},
                       {"from": "tool", "value": "t"}]})"),
            "system:s;user:q;assistant:a;tool:t;");
  EXPECT_EQ(chat_of(R"({"prompt": [{"role": "user", "content": "q"}],
                        "completion": [{"role": "assistant", "content": "a"}]})"),
            "user:q;assistant:a;");
  const auto text = std::get<PlainText>(row_of_line(R"({"text": "all of it"})"));
  EXPECT_EQ(text.text, "all of it");
  EXPECT_EQ(text.trained_from, 0u);
  const auto completion = std::get<PlainText>(row_of_line(R"({"prompt": "2+2=", "completion": "4"})"));
  EXPECT_EQ(completion.text, "2+2=4");
  EXPECT_EQ(completion.trained_from, 4u);
}

TEST(Row, OnlyTheCompletionIsTrained) {
  const auto chat = std::get<Chat>(row_of_line(
      R"({"prompt": [{"role": "assistant", "content": "x"}], "completion": [{"role": "assistant", "content": "a"}]})"));
  EXPECT_EQ(chat.first_completion, 1u);
}

TEST(Row, ReadsToolsAndCalls) {
  const auto chat = std::get<Chat>(row_of_line(
      R"({"tools": "[{\"name\": \"f\"}]", "messages": [{"role": "assistant", "content": null, "tool_calls":
          [{"type": "function", "function": {"name": "f", "arguments": "{\"z\": 1, \"a\": 2}"}}]}]})"));
  EXPECT_EQ(chat.tools.dump(), R"([{"name":"f"}])");
  EXPECT_EQ(chat.messages[0]["tool_calls"][0]["function"]["arguments"].dump(), R"({"z":1,"a":2})");
  const auto share = std::get<Chat>(row_of_line(
      R"({"conversations": [{"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {}}"}]})"));
  EXPECT_EQ(share.messages[0]["tool_calls"][0]["function"]["name"], "f");
}

TEST(Row, DetectsTheForm) {
  EXPECT_EQ(detect_row_form(parse_row(R"({"text": "x", "messages": []})")), RowForm::messages);
  EXPECT_EQ(detect_row_form(parse_row(R"({"text": "x", "messages": null})")), RowForm::text);
  EXPECT_EQ(row_form_of("prompt-completion"), RowForm::prompt_completion);
  EXPECT_EQ(row_form_of(name_of(RowForm::instruction_response)), RowForm::instruction_response);
  EXPECT_THROW(row_form_of("alpaca"), UsageError);
}

struct Fault {
  const char* line;
  const char* sentence;
};

class RowFaults : public ::testing::TestWithParam<Fault> {};

TEST_P(RowFaults, AreOneSentence) {
  try {
    row_of_line(GetParam().line);
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find(GetParam().sentence), std::string::npos) << error.what();
    return;
  }
  FAIL() << "accepted: " << GetParam().line;
}

INSTANTIATE_TEST_SUITE_P(
    All, RowFaults,
    ::testing::Values(
        Fault{"{\"text\": \"x\"", "The line is not JSON"}, Fault{"{\"text\": \"\xff\"}", "The line is not JSON"},
        Fault{"[1]", "The line holds array, not an object"}, Fault{"{}", "keys (none) fit no form"}, Fault{R"({"q": "a", "a": "b"})", "keys (\"q\", \"a\") fit no form"}, Fault{R"({"q": "a", "a": "b"})", "--map"},
        // Not in the middle of a character.
        Fault{"{\"kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk\u00fc\": 0}", "(\"kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk\") fit no form"},
        Fault{R"({"1": 0, "2": 0, "3": 0, "4": 0, "5": 0, "6": 0, "7": 0, "8": 0, "9": 0})", "\"7\", \"8\", ...)"},

        Fault{R"({"text": 3})", "\"text\" is number, not a string"},
        Fault{R"({"messages": "x"})", "\"messages\" is string, not a list"},
        Fault{R"({"messages": []})", "\"messages\" is an empty list"},
        Fault{R"({"messages": [3]})", "Message 0 is number, not an object"},
        Fault{R"({"messages": [{"content": "x"}]})", "Message 0 has no \"role\""},
        Fault{R"({"messages": [{"role": "human", "content": "x"}]})", "has the role \"human\"; allowed: "},
        Fault{R"({"messages": [{"role": "user"}]})", "Message 0 has no \"content\""},
        Fault{R"({"messages": [{"role": "user", "content": null}]})", "Message 0 has no \"content\""},
        Fault{R"({"messages": [{"role": "user", "content": 3}]})", "neither a string nor a list of parts"},
        Fault{R"({"messages": [{"role": "user", "content": [{"type": "image"}]}]})", "a part that is not text"},
        Fault{R"({"messages": [{"role": "user", "content": [{"type": 3, "text": "x"}]}]})", "a part that is not text"},
        Fault{R"({"messages": [{"role": "assistant", "tool_calls": 3}]})", "\"tool_calls\" of message 0 is number"},
        Fault{R"({"messages": [{"role": "assistant", "tool_calls": [{}]}]})", "has no function name"},
        Fault{R"({"messages": [{"role": "user", "content": "x"}], "tools": "{"})", "is a string that is not JSON"},
        Fault{R"({"messages": [{"role": "user", "content": "x"}], "tools": {}})", "\"tools\" is object, not a list"},
        Fault{R"({"conversations": [{"from": "alien", "value": "x"}]})", "is from \"alien\"; allowed are"},
        Fault{R"({"conversations": [{"from": "human"}]})", "needs \"from\" and \"value\""},
        Fault{R"({"prompt": "x", "completion": []})", "wanted are two strings or two lists"},
        Fault{R"({"instruction": 3, "output": "x"})", "\"instruction\" is number"}));

TEST(Row, RefusesDeepNesting) {
  EXPECT_THROW(parse_row(std::string(100000, '[')), DataError);
  EXPECT_THROW(parse_row("{\"text\": " + std::string(100, '[') + std::string(100, ']') + "}"), DataError);
  const std::string deep = std::string(1000000, '[') + std::string(1000000, ']');
  EXPECT_TRUE(parse_inner(deep).is_discarded());
  const std::string call = R"({"conversations": [{"from": "function_call", "value": "{\"name\": )" + deep + "}\"}]}";
  EXPECT_THROW(row_of_line(call), DataError);
  EXPECT_NO_THROW(parse_row("{\"text\": \"" + std::string(100, '[') + "\"}"));
}

}  // namespace
}  // namespace nibble::data::row_test
