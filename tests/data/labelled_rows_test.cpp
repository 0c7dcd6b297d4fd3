#include "nibble/data/labelled_rows.h"

#include "nibble/base/error.h"
#include "nibble/data/dataset.h"
#include "tests/support/files.h"

namespace nibble::data::labelled_rows_test {
namespace {

using test::expect_error;

const std::string spam = R"({"input": "Win now", "label": "spam"})";
const std::string ham = R"({"input": "See you", "label": "ham", "system": "Classify."})";

class LabelledRows : public testing::Test {
 protected:
  LabelledFile read(const std::string& text, bool skip_bad_rows = false) {
    return read_labelled_file(folder_.write("rows.jsonl", text), skip_bad_rows);
  }

  test::TemporaryFolder folder_;
};

TEST_F(LabelledRows, AreReadWithTheirLines) {
  const auto file =
      read(spam + "\n\n" + ham + "\n" + R"({"input": "", "label": 1})" + "\n" + R"({"input": "x", "label": false})");
  const auto& rows = file.rows;
  ASSERT_EQ(rows.size(), 4);
  EXPECT_EQ(rows[1].line, 3);
  EXPECT_EQ(rows[1].content.input, "See you");
  EXPECT_EQ(rows[1].content.label, "ham");
  EXPECT_EQ(rows[1].content.system, "Classify.");
  EXPECT_EQ(rows[2].content.label, "1");
  EXPECT_EQ(labels_of(rows), (std::vector<std::string>{"1", "false", "ham", "spam"}));
}

TEST_F(LabelledRows, NameWhatIsWrong) {
  const auto refuse = [&](const std::string& row, auto... parts) {
    expect_error<DataError>([&] { read(spam + "\n" + row); }, "rows.jsonl, line 2", parts...);
    const auto rest = read(spam + "\n" + row, true);
    EXPECT_EQ(rest.rows.size(), 1);
    EXPECT_EQ(rest.bad_rows, 1);
  };
  refuse(R"({"input": "x"})", "no \"label\"");
  refuse(R"({"label": "x"})", "no \"input\"");
  refuse(R"({"input": "x", "label": ""})", "\"label\" is empty");
  refuse(R"({"input": "x", "label": ["a"]})", "\"label\" is array");
  refuse(R"({"input": "x", "label": 0.5})", "\"label\" is number");
  refuse(R"({"input": 3, "label": "a"})", "\"input\" is number");
  refuse("{", "not JSON");
  expect_error<DataError>([&] { read("\n"); }, "rows.jsonl", "no row");
}

TEST_F(LabelledRows, AreDetectedAndTrainable) {
  EXPECT_EQ(detect_row_form(parse_row(spam)), RowForm::classification);
  EXPECT_EQ(detect_row_form(parse_row(R"({"instruction": "a", "input": "b", "output": "c"})")),
            RowForm::instruction_output);
  EXPECT_EQ(row_form_of("classification"), RowForm::classification);

  const auto model = test::source_path("models/tiny-qwen3");
  const auto tokenizer = text::Tokenizer::load(model);
  const auto chat_template = text::ChatTemplate::load(model);
  const auto text_of = [&](const Example& example, bool trained_alone) {
    std::vector<std::uint32_t> ids;
    for (std::size_t i = 0; i < example.tokens.size(); ++i) {
      if (!trained_alone || example.trained[i] != 0) ids.push_back(static_cast<std::uint32_t>(example.tokens[i]));
    }
    return tokenizer.decode(ids);
  };
  const auto path = folder_.write("rows.jsonl", ham + "\n" + spam);
  const Dataset chats(path, tokenizer, &*chat_template, {});
  EXPECT_EQ(chats.form(), RowForm::classification);
  EXPECT_EQ(text_of(chats.example(0), true), "ham<|im_end|>");
  EXPECT_EQ(text_of(chats.example(0), false),
            "<|im_start|>system\nClassify.<|im_end|>\n<|im_start|>user\nSee you<|im_end|>\n<|im_start|>assistant\n"
            "ham<|im_end|>\n");
  const Dataset texts(path, tokenizer, nullptr, {});
  EXPECT_EQ(text_of(texts.example(0), false), "Classify.\n\nSee you ham<|im_end|>");
  EXPECT_EQ(text_of(texts.example(1), true), " spam<|im_end|>");
}

}  // namespace
}  // namespace nibble::data::labelled_rows_test
