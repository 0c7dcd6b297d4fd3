#include "nibble/data/data_files.h"

#include <gtest/gtest.h>

#include "nibble/base/error.h"
#include "nibble/data/dataset.h"
#include "tests/support/files.h"

namespace nibble::data::data_files_test {
namespace {

using test::expect_error;

DataFiles parsed(const std::vector<std::string>& names) { return DataFiles::parse(names); }

TEST(DataFiles, AreReadWithTheirWeights) {
  const DataFiles files = parsed({"a.jsonl:0.7", "b/c.jsonl:3e-1"});
  ASSERT_EQ(files.files().size(), 2u);
  EXPECT_EQ(files.files()[0].path, "a.jsonl");
  EXPECT_EQ(files.files()[0].weight, 0.7);
  EXPECT_EQ(files.files()[1].weight, 0.3);
  EXPECT_TRUE(files.weighted());
  EXPECT_EQ(files.text(), "a.jsonl:0.7 b/c.jsonl:0.3");
  EXPECT_FALSE(parsed({"a.jsonl", "b:c.jsonl"}).weighted());
  EXPECT_EQ(parsed({"-"}).text(), "standard input");
}

TEST(DataFiles, WhatIsThereIsAPathAsAWhole) {
  const test::TemporaryFolder folder;
  const std::string odd = folder.write("rows.jsonl:0.7", "{}\n");
  EXPECT_EQ(parsed({odd}).files()[0].path, odd);
  EXPECT_FALSE(parsed({odd}).weighted());
  EXPECT_EQ(parsed({odd + ":0.5"}).files()[0].weight, 0.5);
}

TEST(DataFiles, RefuseWeightsWithoutSense) {
  for (const char* weight : {"0", "-1", "nan", "inf", "1e999"}) {
    expect_error<UsageError>([&] { parsed({"a.jsonl:" + std::string(weight)}); }, "\"a.jsonl\"", "above 0");
  }
  expect_error<UsageError>([] { parsed({"a.jsonl:1", "b.jsonl"}); }, "\"b.jsonl\"", "every file");
  expect_error<UsageError>([] { parsed({"-", "-"}); }, "read once");
}

class SeveralFiles : public ::testing::Test {
 protected:
  Dataset open(const std::vector<std::string>& paths, const DatasetOptions& options = {}) const {
    return Dataset(parsed(paths), tokenizer_, &*chat_, options);
  }

  test::TemporaryFolder folder_;
  text::Tokenizer tokenizer_ = text::Tokenizer::load(test::source_path("models/tiny-qwen3"));
  std::optional<text::ChatTemplate> chat_ = text::ChatTemplate::load(test::source_path("models/tiny-qwen3"));
  std::string texts_ = folder_.write("texts.jsonl", "{\"text\": \"one\"}\n\n{\"text\": \"two words\"}\n");
  std::string chats_ = folder_.write(
      "chats.jsonl", R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})" "\n");
};

TEST_F(SeveralFiles, AreOneDataSet) {
  const Dataset both = open({texts_, chats_}), texts = open({texts_}), chats = open({chats_});
  ASSERT_EQ(both.size(), 3u);
  EXPECT_EQ(both.counts().rows, 3u);
  EXPECT_EQ(both.form_names(), "text, messages");
  EXPECT_EQ(both.files()[1].begin, 2u);
  EXPECT_EQ(both.files()[1].rows, 1u);
  EXPECT_EQ(both.file_name(1), texts_);
  EXPECT_EQ(both.row(1), 3u);
  EXPECT_EQ(both.file_name(2), chats_);
  EXPECT_EQ(both.row(2), 1u);
  for (const bool cached : {true, false}) {
    const Dataset rows = open({texts_, chats_}, {.cache_bytes = cached ? std::size_t{1} << 20 : 0});
    EXPECT_EQ(rows.example(1).tokens, texts.example(1).tokens);
    EXPECT_EQ(rows.example(2).tokens, chats.example(0).tokens);
  }
  const Batch batch = both.batch(std::vector<std::uint32_t>{2, 0});
  EXPECT_EQ(batch.files, (std::vector<std::string>{chats_, texts_}));
}

TEST_F(SeveralFiles, HaveAHashThatTellsEachFileAndTheirOrder) {
  EXPECT_EQ(open({texts_}).hash(), open({texts_}).hash());
  EXPECT_NE(open({texts_, chats_}).hash(), open({chats_, texts_}).hash());
  EXPECT_NE(open({texts_, chats_}).hash(), open({texts_, texts_}).hash());
}

TEST_F(SeveralFiles, ReadingTellsHowFarItIs) {
  std::vector<double> parts;
  open({texts_, chats_}, {.progress = [&](double part) { parts.push_back(part); }});
  EXPECT_EQ(parts, (std::vector<double>{0.5, 1.0}));
  // Some 4,096 lines are read at a time.
  std::string rows;
  for (int i = 0; i < 10000; ++i) rows += "{\"text\": \"x y\"}\n";
  parts.clear();
  open({folder_.write("many.jsonl", rows)}, {.progress = [&](double part) { parts.push_back(part); }});
  ASSERT_EQ(parts.size(), 3u);
  EXPECT_NEAR(parts[0], 0.41, 0.005);
  EXPECT_NEAR(parts[1], 0.82, 0.005);
  EXPECT_EQ(parts[2], 1.0);
}

TEST_F(SeveralFiles, FaultsNameTheFile) {
  const std::string bad = folder_.write("bad.jsonl", "{\"text\": \"x\"}\n{\n");
  expect_error<DataError>([&] { open({texts_, bad}); }, "bad.jsonl, line 2");
  const std::string empty = folder_.write("empty.jsonl", "\n");
  expect_error<DataError>([&] { open({texts_, empty}); }, "empty.jsonl", "No row is left");
  expect_error<DataError>([&] { open({texts_, chats_}, {.max_length = 4}); }, "chats.jsonl, line 1", "1 of 3 rows");
  const std::string pairs = folder_.write("pairs.jsonl", R"({"prompt": "q", "chosen": " a", "rejected": " b"})" "\n");
  expect_error<UsageError>([&] { open({texts_, pairs}); }, "texts.jsonl", "pairs.jsonl", "do not mix");
}

}  // namespace
}  // namespace nibble::data::data_files_test
