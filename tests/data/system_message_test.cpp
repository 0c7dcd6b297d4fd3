#include <gtest/gtest.h>

#include "nibble/base/error.h"
#include "nibble/data/dataset.h"
#include "tests/data/trained_text.h"
#include "tests/support/files.h"

namespace nibble::data::system_message_test {
namespace {

using test::expect_error;
using test::family;
using test::tokenizer;

Example encoded(const text::ChatTemplate* shape, const std::string& row, const std::string& system) {
  const OrderedJson json = parse_row(row);
  return RowEncoder(tokenizer(), shape, TrainOn::assistant, OrderedJson::object(), Think::stock, system)
      .encode(read_row(json, detect_row_form(json)));
}

void expect_same(const text::ChatTemplate* shape, const std::string& row, const std::string& system, const std::string& written) {
  const Example given = encoded(shape, row, system), expected = encoded(shape, written, "");
  EXPECT_EQ(given.tokens, expected.tokens) << row;
  EXPECT_EQ(given.trained, expected.trained) << row;
  EXPECT_EQ(given.rejected_begin, expected.rejected_begin) << row;
}

TEST(SystemMessage, StandsAsIfTheRowHadIt) {
  const auto shape = family("chatml_think");
  const std::string turns = R"({"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "train": false},
                               {"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}]})";
  expect_same(&shape, R"({"messages": [)" + turns, "Be brief.", R"({"messages": [{"role": "system", "content": "Be brief."}, )" + turns);
  expect_same(&shape, R"({"instruction": "q", "output": "a"})", "Be brief.", R"({"instruction": "q", "output": "a", "system": "Be brief."})");
  expect_same(&shape, R"({"input": "q", "label": "a"})", "Be brief.", R"({"input": "q", "label": "a", "system": "Be brief."})");
  expect_same(nullptr, R"({"input": "q", "label": "a"})", "Be brief.", R"({"input": "q", "label": "a", "system": "Be brief."})");
  // The prompt's turns stay the prompt's.
  const std::string prompt = R"({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}])";
  for (const char* answers : {R"(, "completion": [{"role": "assistant", "content": "b"}]})", R"(, "chosen": "b", "rejected": "c"})"}) {
    expect_same(&shape, R"({"prompt": [)" + prompt + answers, "Be brief.",
                R"({"prompt": [{"role": "system", "content": "Be brief."}, )" + prompt + answers);
  }
}

TEST(SystemMessage, ARowsOwnStays) {
  const auto shape = family("chatml_think");
  for (const char* row : {R"({"messages": [{"role": "system", "content": "Own."}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})",
                          R"({"messages": [{"role": "developer", "content": "Own."}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})",
                          R"({"input": "q", "label": "a", "system": "Own."})", R"({"prompt": "q", "completion": " a"})"}) {
    expect_same(&shape, row, "Be brief.", row);
  }
}

TEST(SystemMessage, IsRefusedWhereItWouldStandNowhere) {
  const auto shape = family("chatml_think");
  const test::TemporaryFolder folder;
  const std::string texts = folder.write("texts.jsonl", "{\"text\": \"one\"}\n");
  const std::string chats = folder.write("chats.jsonl", R"({"instruction": "q", "output": "a"})" "\n");
  const auto tokens = [&](std::vector<std::string> files, const std::string& system) {
    return Dataset(DataFiles::parse(files), tokenizer(), &shape, {.system = system}).counts().tokens;
  };
  expect_error<UsageError>([&] { tokens({texts}, "Be brief."); }, "--system", "form text");
  EXPECT_EQ(tokens({texts, chats}, "Be brief.") - tokens({texts, chats}, ""), tokens({chats}, "Be brief.") - tokens({chats}, ""));
  EXPECT_GT(tokens({chats}, "Be brief."), tokens({chats}, ""));
}

}  // namespace
}  // namespace nibble::data::system_message_test
