#include "nibble/base/rng.h"
#include "tests/train/tiny_run.h"

#include <cmath>

// `nibble eval --labels`: answers judged by their loss.
namespace nibble::classify_test {
namespace {

using test::expect_complaint;

using Words = std::vector<std::string>;

const std::string tiny = test::source_path("models/tiny-qwen3");

std::string row(const std::string& input, const std::string& label) {
  return Json{{"input", input}, {"label", label}}.dump() + "\n";
}

// Rows that ask which of two kinds a word is. `swapped` gives every row the other label.
std::string kind_rows(std::size_t count, std::uint64_t seed, bool swapped = false) {
  static const Words words{"sun", "rain", "snow", "wind", "bread", "milk", "rice", "soup"};
  Rng rng(seed);
  std::string rows;
  for (std::size_t i = 0; i < count; ++i) {
    const auto word = rng.below(8);
    rows += row("Is " + words[word] + " weather or food?", (word < 4) != swapped ? "weather" : "food");
  }
  return rows;
}

test::ProgramResult eval(const fs::path& data, const Words& more) {
  Words words{"eval", "--model", tiny, "--data", data.string()};
  words.insert(words.end(), more.begin(), more.end());
  return test::run_program(NIBBLE_PROGRAM, words);
}

// The JSON lines on standard output.
std::vector<Json> records(const fs::path& data, const Words& more) {
  const auto result = eval(data, more);
  EXPECT_EQ(result.code, 0) << result.err;
  std::vector<Json> found;
  std::istringstream text(result.out);
  for (std::string line; std::getline(text, line);) {
    if (line.starts_with('{')) found.push_back(parse_json(line, "output"));
  }
  return found;
}

Json summary(const fs::path& data, Words more) {
  more.push_back("--json");
  return records(data, more).at(0);
}

class Classify : public testing::Test {
 protected:
  test::TemporaryFolder folder_;
};

TEST_F(Classify, ScoresAreTheLossesOfTheAnswers) {
  const Words labels{"weather", "food"};
  std::string rows, chats;
  for (const std::string input : {"Is sun weather or food?", "Is soup weather or food?", "x"}) {
    rows += row(input, "food");
    for (const auto& label : labels) {
      const Json question{{"role", "user"}, {"content", input}}, answer{{"role", "assistant"}, {"content", label}};
      chats += Json{{"messages", {question, answer}}}.dump() + "\n";
    }
  }
  const auto data = folder_.write("rows.jsonl", rows);
  // Two chats a pass, or one row with its two candidates: the same streams, so the same bits.
  const auto losses = records(folder_.write("chats.jsonl", chats), {"--rows", "--batch-size", "2"});
  ASSERT_EQ(losses.size(), 6u);
  for (const std::string normalize : {"none", "tokens", "bytes"}) {
    const auto found =
        records(data, {"--labels", "weather,food", "--batch-size", "1", "--rows", "--normalize", normalize});
    ASSERT_EQ(found.size(), 3u);
    for (std::size_t i = 0; i < 6; ++i) {
      const auto& label = labels[i % 2];
      double expected = losses[i]["loss"];  // a mean over tokens
      if (normalize != "tokens") expected *= losses[i]["tokens"].get<double>();
      if (normalize == "bytes") expected /= static_cast<double>(label.size());
      EXPECT_DOUBLE_EQ(found[i / 2]["scores"][label].get<double>(), expected) << normalize << ", " << i;
    }
  }
}

TEST_F(Classify, IsLearnt) {
  test::TinyRun tiny_run;
  tiny_run.arguments.erase("valid");
  const auto data = folder_.write("judged.jsonl", kind_rows(40, 2));
  // The base knows nothing of the task: it says the same of every row.
  const auto before = summary(data, {"--labels", "weather,food"});
  EXPECT_LT(std::abs(before["mcc"].get<double>()), 0.3);
  EXPECT_EQ(before["rows"], 40);
  EXPECT_EQ(before["confusion_matrix"][0][0].get<int>() + before["confusion_matrix"][0][1].get<int>(),
            before["per_label"]["weather"]["rows"]);

  const auto trained = tiny_run.run({{"data", folder_.write("train.jsonl", kind_rows(60, 1)).string()},
                                     {"batch-size", "6"},
                                     {"max-steps", "20"},
                                     {"learning-rate", "0.005"},
                                     {"eval-every", "0"},
                                     {"save-every", "0"}});
  ASSERT_EQ(trained.code, 0) << trained.err;
  const Words with_adapter{"--adapter", tiny_run.output().string(), "--labels", "auto"};
  const auto after = summary(data, with_adapter);
  EXPECT_GE(after["accuracy"].get<double>(), 0.95);
  EXPECT_GE(after["mcc"].get<double>(), 0.9);
  EXPECT_EQ(after["labels"], Json({"food", "weather"}));
  const auto table = eval(data, with_adapter).out;
  for (const std::string part : {"accuracy ", "macro F1 ", "MCC ", "precision", "recall", "predicted"}) {
    EXPECT_NE(table.find(part), table.npos) << table;
  }
}

TEST_F(Classify, TheThresholdIsOfTheValidationFileAlone) {
  const auto valid = folder_.write("valid.jsonl", kind_rows(24, 3));
  const auto one = folder_.write("one.jsonl", kind_rows(10, 4)), other = folder_.write("other.jsonl", kind_rows(10, 4, true));
  const auto judged = [&](const fs::path& data, const fs::path& fixed_on) {
    return records(data, {"--labels", "weather,food", "--positive", "food", "--valid", fixed_on.string(), "--json", "--rows"});
  };
  const auto found = judged(one, valid), swapped = judged(other, valid);
  ASSERT_EQ(found.size(), 11u);
  const double threshold = found.back()["threshold"];
  // The same rows with other labels are judged the same; fixed on them, the threshold would be another.
  EXPECT_EQ(swapped.back()["threshold"], threshold);
  EXPECT_NE(judged(other, other).back()["threshold"], threshold);
  EXPECT_NE(judged(one, one).back()["threshold"], judged(other, other).back()["threshold"]);
  for (std::size_t i = 0; i < 10; ++i) {
    const auto& scores = found[i]["scores"];
    const bool food = scores["weather"].get<double>() - scores["food"].get<double>() > threshold;
    EXPECT_EQ(found[i]["predicted"], food ? "food" : "weather") << i;
    EXPECT_EQ(swapped[i]["predicted"], found[i]["predicted"]) << i;
  }
  EXPECT_EQ(found.back()["positive"], "food");
  // Without a threshold the base says "weather" of every row; with one it tells some apart.
  EXPECT_GT(summary(valid, {"--labels", "weather,food", "--positive", "food", "--valid", valid.string()})["mcc"], 0);
}

TEST_F(Classify, NamesWhatCannotBe) {
  const auto data = folder_.write("rows.jsonl", kind_rows(3, 1) + row("x", "other"));
  const auto refuse = [&](int code, const Words& words, auto... parts) { expect_complaint(eval(data, words), code, parts...); };
  refuse(1, {"--labels", "weather,food"}, "rows.jsonl, line 4", "\"other\"", "weather, food");
  refuse(2, {"--labels", "food"}, "1 label", "two");
  refuse(2, {"--labels", "food,weather,food"}, "\"food\" is given twice");
  refuse(2, {"--labels", "auto", "--overflow", "cut"}, "--overflow", "error or drop");
  refuse(2, {"--labels", "auto", "--format", "text"}, "--format", "classification");
  refuse(2, {"--labels", "auto", "--valid", data.string()}, "--valid", "--positive");
  refuse(2, {"--labels", "auto", "--valid", data.string(), "--positive", "food"}, "--valid", "two labels; there are 3");
  refuse(2, {"--positive", "food"}, "--positive", "--valid");
  refuse(2, {"--normalize", "tokens"}, "--normalize", "--labels");
  refuse(1, {"--labels", "auto", "--max-length", "12"}, "rows.jsonl, line 1", "12", "--overflow drop");
  const auto two = folder_.write("two.jsonl", kind_rows(3, 1));
  expect_complaint(eval(two, {"--labels", "auto", "--valid", two.string(), "--positive", "spam"}), 2, "--positive", "\"spam\"");
  expect_complaint(eval(folder_.write("chat.jsonl", R"({"messages": []})"), {"--labels", "a,b"}), 1, "chat.jsonl, line 1",
                   "\"input\"");
  std::ofstream(data, std::ios::app) << "{\n";
  const Words leaving_out{"--labels", "auto", "--max-length", "20", "--overflow", "drop", "--skip-bad-rows"};
  EXPECT_EQ(summary(data, leaving_out)["over_long_rows"], 3);
  EXPECT_EQ(summary(data, leaving_out)["bad_rows"], 1);
  EXPECT_NE(eval(data, leaving_out).out.find("left out: 3 over-long rows, 1 bad ones"), std::string::npos);
}

}  // namespace
}  // namespace nibble::classify_test
