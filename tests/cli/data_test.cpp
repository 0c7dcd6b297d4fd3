#include "nibble/io/json.h"
#include "tests/cli/run_program.h"

namespace nibble::data_test {
namespace {

using test::run_nibble;

const std::string tiny = test::source_path("models/tiny-qwen3");

Json info(std::vector<std::string> arguments, const std::string& input = {}) {
  arguments.insert(arguments.begin(), {"info", "--model", tiny, "--json"});
  const auto result = run_nibble(arguments, input);
  EXPECT_EQ(result.code, 0) << result.err;
  return result.code == 0 ? parse_json(result.out, "output") : Json::object();
}

const std::string chat_row = R"({"messages": [{"role": "user", "content": "two, or 2?"}, {"role": "assistant", "content": "a \"b\""}]})" "\n";

TEST(Data, TheSameChatInEveryForm) {
  const test::TemporaryFolder folder;
  const Json expected = info({"--data", folder.write("rows.jsonl", chat_row)})["first_rows"][0]["tokens"];
  const std::string csv = folder.write("rows.csv", "question,answer\r\n\"two, or 2?\",\"a \"\"b\"\"\"\r\n");
  const Json mapped = info({"--data", csv, "--map", "question=user,answer=assistant"});
  EXPECT_EQ(mapped["form"], "messages");
  EXPECT_EQ(mapped["first_rows"][0]["tokens"], expected);
  EXPECT_EQ(mapped["first_rows"][0]["line"], 2);
  const std::string named = folder.write("rows.tsv", "instruction\toutput\ntwo, or 2?\t\"a \"\"b\"\"\"\n");
  EXPECT_EQ(info({"--data", named})["first_rows"][0]["tokens"], expected);
  EXPECT_EQ(info({"--data", "-"}, chat_row)["first_rows"][0]["tokens"], expected);
  EXPECT_EQ(info({"--data", "-", "--map", "q=user,a=assistant"}, "q,a\n\"two, or 2?\",\"a \"\"b\"\"\"\n")["first_rows"][0]["tokens"], expected);
  const std::string keys = folder.write("keys.jsonl", R"({"q": "two, or 2?", "text": "not this", "a": "a \"b\""})" "\n");
  EXPECT_EQ(info({"--data", keys, "--map", "q=user", "a=assistant"})["first_rows"][0]["tokens"], expected);
}

TEST(Data, ASystemMessageIsShownAndEvaluated) {
  const test::TemporaryFolder folder;
  const std::string plain = folder.write("rows.jsonl", chat_row);
  const std::string written = folder.write("written.jsonl", R"({"messages": [{"role": "system", "content": "Be brief."}, )" + chat_row.substr(14));
  const Json expected = info({"--data", written})["first_rows"][0]["tokens"];
  EXPECT_NE(info({"--data", plain})["first_rows"][0]["tokens"], expected);
  EXPECT_EQ(info({"--data", plain, "--system", "Be brief."})["first_rows"][0]["tokens"], expected);
  EXPECT_EQ(run_nibble({"eval", "--model", tiny, "--json", "--data", plain, "--system", "Be brief."}).out,
            run_nibble({"eval", "--model", tiny, "--json", "--data", written}).out);
}

TEST(Data, SeveralFilesAreToldApart) {
  const test::TemporaryFolder folder;
  const std::string texts = folder.write("texts.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two\"}\n{\"text\": \"three\"}\n");
  const std::string chats = folder.write("chats.jsonl", chat_row);
  const Json found = info({"--data", texts + ":1", chats + ":3"});
  EXPECT_EQ(found["form"], "text, messages");
  ASSERT_EQ(found["files"].size(), 2u);
  EXPECT_EQ(found["files"][0]["rows"], 3);
  EXPECT_EQ(found["files"][0]["examples_in_epoch"], 1);
  EXPECT_EQ(found["files"][1]["examples_in_epoch"], 3);
  const auto text = run_nibble({"info", "--model", tiny, "--rows", "4", "--data", texts, chats});
  EXPECT_NE(text.out.find(chats + ", line 1:"), std::string::npos) << text.out;
}

TEST(Data, RowsOfTablesAreNamedByTheirLine) {
  const test::TemporaryFolder folder;
  const std::string csv = folder.write("rows.csv", "text,id\n\"a\nb\",1\nc\nd,2\n");
  const auto refused = run_nibble({"info", "--model", tiny, "--data", csv});
  EXPECT_EQ(refused.code, 1);
  EXPECT_NE(refused.err.find("rows.csv, line 4: The record has 1 fields, the header 2."), std::string::npos) << refused.err;
  const Json found = info({"--data", csv, "--skip-bad-rows"});
  EXPECT_EQ(found["rows"], 2);
  EXPECT_EQ(found["bad_rows"], 1);
}

TEST(Data, EvalTakesWhatTrainingTakes) {
  const test::TemporaryFolder folder;
  const std::string rows = folder.write("rows.jsonl", chat_row);
  const std::string csv = folder.write("rows.csv", "question,answer\n\"two, or 2?\",\"a \"\"b\"\"\"\n");
  const auto eval = [&](std::vector<std::string> arguments, const std::string& input = {}) {
    arguments.insert(arguments.begin(), {"eval", "--model", tiny, "--json"});
    const auto result = run_nibble(arguments, input);
    EXPECT_EQ(result.code, 0) << result.err;
    return result.out;
  };
  const std::string expected = eval({"--data", rows});
  EXPECT_EQ(eval({"--data", csv, "--map", "question=user,answer=assistant"}), expected);
  EXPECT_EQ(eval({"--data", "-"}, chat_row), expected);
  const std::string both = eval({"--rows", "--data", rows, rows});
  EXPECT_NE(both.find("\"file\""), std::string::npos) << both;
  const auto weighted = run_nibble({"eval", "--model", tiny, "--data", rows + ":1"});
  EXPECT_EQ(weighted.code, 2);
  EXPECT_NE(weighted.err.find("every row counts once"), std::string::npos) << weighted.err;
  const std::string labels = folder.write("labels.csv", "review,stars\ngood,1\nbad,0\n");
  EXPECT_NE(eval({"--data", labels, "--labels", "auto", "--map", "review=input,stars=label"}).find("\"rows\": 2"), std::string::npos);
}

}  // namespace
}  // namespace nibble::data_test
