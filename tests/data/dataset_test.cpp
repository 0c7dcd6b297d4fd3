#include "nibble/data/dataset.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <numeric>

#include "nibble/base/error.h"
#include "nibble/data/line_reader.h"

namespace nibble::data::dataset_test {
namespace {

const fs::path model = fs::path(NIBBLE_SOURCE_DIR) / "models/tiny-qwen3";

class DatasetFile : public ::testing::Test {
 protected:
  DatasetFile() : path_(fs::temp_directory_path() / ("nibble_dataset_" + std::to_string(getpid()) + ".jsonl")) {}
  ~DatasetFile() override { fs::remove(path_); }

  void write(const std::string& text) const { std::ofstream(path_, std::ios::binary) << text; }
  Dataset open(const DatasetOptions& options = {}) const { return Dataset(path_, tokenizer_, &*chat_, options); }
  std::string error_of(const std::string& text, const DatasetOptions& options = {}) const {
    write(text);
    try {
      open(options);
    } catch (const DataError& error) {
      return error.what();
    }
    return "none";
  }

  fs::path path_;
  text::Tokenizer tokenizer_ = text::Tokenizer::load(model);
  std::optional<text::ChatTemplate> chat_ = text::ChatTemplate::load(model);
};

std::string text_row(std::size_t words) {
  std::string text = "word";
  for (std::size_t i = 1; i < words; ++i) text += " word";
  return "{\"text\": \"" + text + "\"}\n";
}

TEST_F(DatasetFile, CountsAndReadsTextRows) {
  write("\xef\xbb\xbf" + text_row(3) + "\r\n\n  \n" + text_row(5) + "{\"text\": \"no line end\"}");
  const Dataset data = open();
  EXPECT_EQ(data.form(), RowForm::text);
  ASSERT_EQ(data.size(), 3u);
  EXPECT_EQ(data.row(0), 1u);
  EXPECT_EQ(data.row(1), 5u);
  EXPECT_EQ(data.row(2), 6u);
  const auto lengths = data.lengths();
  EXPECT_EQ(data.counts().tokens, std::accumulate(lengths.begin(), lengths.end(), std::uint64_t{0}));
  EXPECT_EQ(data.counts().trained_tokens, data.counts().tokens - 3);  // all but the first of each
  const Example example = data.example(0);
  EXPECT_EQ(example.tokens.back(), static_cast<std::int32_t>(*tokenizer_.eos_id()));
  EXPECT_EQ(example.trained.front(), 0);
  EXPECT_EQ(example.trained.back(), 1);
  const auto& histogram = data.counts().histogram;
  EXPECT_EQ(std::accumulate(histogram.begin(), histogram.end(), std::uint64_t{0}), 3u);
}

TEST_F(DatasetFile, TrainsTheCompletionAndItsEnd) {
  write("{\"prompt\": \"What is it?\", \"completion\": \" A thing.\"}\n");
  const Dataset data = open();
  const Example example = data.example(0);
  std::vector<text::TokenId> ids;
  for (std::size_t i = 0; i < example.tokens.size(); ++i) {
    if (example.trained[i] != 0) ids.push_back(static_cast<text::TokenId>(example.tokens[i]));
  }
  EXPECT_EQ(tokenizer_.decode(ids), " A thing.<|im_end|>");
}

TEST_F(DatasetFile, ReadsTheSameWithAndWithoutCache) {
  std::string text;
  for (std::size_t i = 1; i < 40; ++i) text += text_row(1 + i * 37 % 50);
  write(text);
  const Dataset cached = open({.overflow = Overflow::split, .max_length = 20});
  const Dataset part = open({.overflow = Overflow::split, .max_length = 20, .cache_bytes = 2000});
  const Dataset none = open({.overflow = Overflow::split, .max_length = 20, .cache_bytes = 0});
  ASSERT_EQ(cached.size(), none.size());
  for (std::uint32_t i = 0; i < cached.size(); ++i) {
    EXPECT_EQ(cached.example(i).tokens, none.example(i).tokens);
    EXPECT_EQ(part.example(i).tokens, none.example(i).tokens);
    EXPECT_EQ(cached.example(i).trained, none.example(i).trained);
    EXPECT_EQ(none.example(i).tokens.size(), none.tokens(i));
  }
  const std::uint32_t chosen[] = {7, 0};
  const Batch batch = none.batch(chosen);
  EXPECT_EQ(batch.tokens.size(), none.tokens(7) + none.tokens(0));
  EXPECT_EQ(batch.rows, (std::vector<std::uint64_t>{none.row(7), none.row(0)}));
}

TEST_F(DatasetFile, ThreadsDoNotChangeTheResult) {
  std::string text;
  for (std::size_t i = 0; i < 5000; ++i) text += i % 97 == 5 ? "bad\n" : text_row(1 + i % 13);
  write(text);
  const Dataset one = open({.skip_bad_rows = true, .threads = 1});
  const Dataset many = open({.skip_bad_rows = true, .threads = 8});
  ASSERT_EQ(one.size(), many.size());
  EXPECT_EQ(one.lengths(), many.lengths());
  EXPECT_EQ(one.counts().bad_rows, many.counts().bad_rows);
  EXPECT_EQ(one.hash(), many.hash());
  for (std::uint32_t i = 0; i < one.size(); i += 101) {
    EXPECT_EQ(one.row(i), many.row(i));
    EXPECT_EQ(one.example(i).tokens, many.example(i).tokens);
  }
  EXPECT_NE(error_of(text, {.threads = 8}).find(", line 6: "), std::string::npos);
}

TEST_F(DatasetFile, TreatsOverLongRows) {
  const std::string text = text_row(4) + text_row(30) + text_row(6);
  const std::string error = error_of(text, {.max_length = 10});
  EXPECT_NE(error.find("1 of 3 rows have more than 10 tokens"), std::string::npos) << error;
  EXPECT_NE(error.find("drop, cut or split"), std::string::npos);
  EXPECT_NE(error.find("first in " + path_.string() + ", line 2"), std::string::npos);

  const Dataset dropped = open({.overflow = Overflow::drop, .max_length = 10});
  EXPECT_EQ(dropped.size(), 2u);
  EXPECT_EQ(dropped.counts().over_long_rows, 1u);
  const Dataset cut = open({.overflow = Overflow::cut, .max_length = 10});
  ASSERT_EQ(cut.size(), 3u);
  EXPECT_EQ(cut.tokens(1), 10u);
  const Dataset split = open({.overflow = Overflow::split, .max_length = 10});
  const Dataset whole = open({.max_length = 1000});
  // A piece begins with the last token of the one before, so that no label is lost.
  EXPECT_EQ(split.counts().trained_tokens, whole.counts().trained_tokens);
  std::vector<std::int32_t> joined{whole.example(1).tokens.front()};
  for (std::uint32_t i = 1; i + 1 < split.size(); ++i) {
    EXPECT_EQ(split.row(i), 2u);
    EXPECT_LE(split.tokens(i), 10u);
    const Example piece = split.example(i);
    EXPECT_EQ(piece.trained.front(), 0);
    EXPECT_EQ(piece.tokens.front(), joined.back());
    joined.insert(joined.end(), piece.tokens.begin() + 1, piece.tokens.end());
  }
  EXPECT_EQ(joined, whole.example(1).tokens);
}

TEST_F(DatasetFile, PiecesWithoutATrainedTokenAreCounted) {
  const std::string question(400, 'q');
  write("{\"instruction\": \"" + question + "\", \"output\": \"a\"}\n{\"instruction\": \"q\", \"output\": \"a\"}\n");
  const Dataset data = open({.overflow = Overflow::cut, .max_length = 16});
  EXPECT_EQ(data.size(), 1u);
  EXPECT_EQ(data.counts().untrained_pieces, 1u);
  EXPECT_EQ(data.counts().rows, 2u);
}

TEST_F(DatasetFile, FaultsNameFileAndLine) {
  const std::string good = "{\"instruction\": \"q\", \"output\": \"a\"}\n";
  const std::string place = path_.string() + ", line 2: ";
  EXPECT_EQ(error_of(good + "{\"instruction\": \"q\"}\n"), "[data] " + place + "The row has no \"output\".");
  EXPECT_EQ(error_of(good + "nonsense\n").rfind("[data] " + place + "The line is not JSON", 0), 0u);
  const std::string untrained = error_of("{\"text\": \"x y\"}\n{\"text\": \"\"}\n");
  EXPECT_EQ(untrained.rfind("[data] " + place + "The row has no trained", 0), 0u);
  EXPECT_NE(error_of("").find("No row is left"), std::string::npos);
  EXPECT_NE(error_of("\n\n").find("No row is left"), std::string::npos);
  const std::string all_cut = error_of("{\"instruction\": \"q q q q q q q q\", \"output\": \"a\"}\n", {.overflow = Overflow::cut, .max_length = 4});
  EXPECT_NE(all_cut.find("No row is left to train on (1 rows, 0 bad, 1 over-long, 1 pieces whose trained tokens were cut off)"), std::string::npos) << all_cut;
  const std::string long_line = error_of("{\"text\": \"" + std::string(max_line_bytes, 'x') + "\"}\n");
  EXPECT_NE(long_line.find("line 1: The line is longer than"), std::string::npos);
}

TEST_F(DatasetFile, BadRowsCanBeSkipped) {
  write("{\"text\": \"one two\"}\nbad\n{\"other\": 1}\n{\"text\": \"three four\"}\n");
  const Dataset data = open({.skip_bad_rows = true});
  EXPECT_EQ(data.size(), 2u);
  EXPECT_EQ(data.counts().bad_rows, 2u);
  EXPECT_EQ(data.row(1), 4u);
}

TEST_F(DatasetFile, TheFormCanBeForced) {
  write("{\"text\": \"x y\", \"instruction\": \"q\", \"output\": \"a\"}\n");
  EXPECT_EQ(open().form(), RowForm::instruction_output);
  EXPECT_EQ(open({.form = RowForm::text}).form(), RowForm::text);
  EXPECT_THROW(open({.form = RowForm::messages}), DataError);
}

TEST_F(DatasetFile, MessagesNeedATemplate) {
  write("{\"instruction\": \"q\", \"output\": \"a\"}\n");
  EXPECT_THROW(Dataset(path_, tokenizer_, nullptr, {}), DataError);
}

TEST_F(DatasetFile, AChangedFileIsNoticed) {
  write(text_row(3) + text_row(8));
  const Dataset data = open({.cache_bytes = 0});
  const std::uint64_t hash = data.hash();
  EXPECT_EQ(open().hash(), hash);
  write(text_row(9) + text_row(2));
  EXPECT_NE(open().hash(), hash);
  EXPECT_THROW(data.example(0), DataError);
}

// FNV's published values.
TEST(Fnv1a64, EqualsThePublishedValues) {
  const auto hash = [](std::string_view text) {
    Fnv1a64 result;
    result.add(text);
    return result.value();
  };
  EXPECT_EQ(hash(""), 0xcbf29ce484222325u);
  EXPECT_EQ(hash("a"), 0xaf63dc4c8601ec8cu);
  EXPECT_EQ(hash("foobar"), 0x85944171f73967e8u);
}

TEST_F(DatasetFile, LinesCrossBlocks) {
  std::string text;
  std::vector<std::string> expected;
  for (std::size_t i = 0; i < 50; ++i) {
    expected.push_back(std::string(i * 7919 % 70000 * 3, static_cast<char>('a' + i % 26)));
    text += expected.back() + (i % 2 == 0 ? "\n" : "\r\n");
  }
  write(text);
  const File file(path_);
  LineReader reader(file, path_.string());
  std::size_t count = 0;
  for (Line line; reader.next(line); ++count) {
    ASSERT_LT(count, expected.size());
    EXPECT_EQ(line.text, expected[count]);
    EXPECT_EQ(line.number, count + 1);
    EXPECT_EQ(LineReader::read_at(file, line.offset), expected[count]);
  }
  EXPECT_EQ(count, expected.size());
}

TEST(Overflow, HasNames) {
  EXPECT_EQ(overflow_of(name_of(Overflow::split)), Overflow::split);
  EXPECT_THROW(overflow_of("truncate"), UsageError);
  EXPECT_EQ(train_on_of("last"), TrainOn::last);
  EXPECT_THROW(train_on_of("user"), UsageError);
}

}  // namespace
}  // namespace nibble::data::dataset_test
