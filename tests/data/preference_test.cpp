#include <gtest/gtest.h>

#include "nibble/base/error.h"
#include "nibble/data/dataset.h"
#include "nibble/data/sampler.h"
#include "tests/support/files.h"

namespace nibble::data::preference_test {
namespace {

using U = std::vector<std::uint32_t>;

PreferencePair read(std::string_view line) {
  const OrderedJson row = parse_row(line);
  return std::get<PreferencePair>(read_row(row, detect_row_form(row)));
}

std::string text_of(const Chat& chat) {
  std::string result;
  for (std::size_t i = 0; i < chat.messages.size(); ++i) {
    result += (i == chat.first_completion ? "|" : "") + chat.messages[i]["role"].get<std::string>().substr(0, 1) + ":" +
              chat.messages[i]["content"].get<std::string>() + ";";
  }
  return result;
}

std::string text_of(const PlainText& plain) {
  return plain.text.substr(0, plain.trained_from) + "|" + plain.text.substr(plain.trained_from);
}

// The chosen and the rejected side; a bar stands where the answer begins.
std::string sides(std::string_view line) {
  const auto text = [](const auto& side) { return std::visit([](const auto& row) { return text_of(row); }, side); };
  const PreferencePair pair = read(line);
  return text(pair.chosen) + " / " + text(pair.rejected);
}

TEST(PreferenceRow, ReadsTextsAndMessages) {
  EXPECT_EQ(sides(R"({"prompt": "2+2=", "chosen": "4", "rejected": "5"})"), "2+2=|4 / 2+2=|5");
  const std::string chats = "u:q;|a:yes; / u:q;|a:no;";
  EXPECT_EQ(sides(R"({"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": "yes"}],
                      "rejected": [{"role": "assistant", "content": "no"}]})"), chats);
  // Answers as texts to a prompt of messages, and the other way round.
  EXPECT_EQ(sides(R"({"prompt": [{"role": "user", "content": "q"}], "chosen": "yes", "rejected": "no"})"), chats);
  EXPECT_EQ(sides(R"({"prompt": "q", "chosen": [{"role": "assistant", "content": "yes"}],
                      "rejected": [{"role": "assistant", "content": "no"}]})"), chats);
}

TEST(PreferenceRow, FindsAPromptInBothSides) {
  const std::string whole = R"("chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}],
      "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "no"}])";
  EXPECT_EQ(sides("{" + whole + "}"), "u:q;|a:yes; / u:q;|a:no;");
  // A column that repeats the prompt as text beside whole chats, as some data sets have it.
  EXPECT_EQ(sides("{\"prompt\": \"q\", " + whole + "}"), "u:q;|a:yes; / u:q;|a:no;");
  // The answer begins with the word that differs, whatever letters it shares.
  EXPECT_EQ(sides(R"({"chosen": "Is it? Yes.", "rejected": "Is it? Yet not."})"), "Is it?| Yes. / Is it?| Yet not.");
  EXPECT_EQ(sides(R"({"chosen": "Is it so", "rejected": "Is it so or not"})"), "Is it| so / Is it| so or not");
}

TEST(PreferenceRow, IsDetectedBehindFormsThatTrainOnOneAnswer) {
  EXPECT_EQ(detect_row_form(parse_row(R"({"prompt": "x", "chosen": "y", "rejected": "z"})")), RowForm::preference);
  EXPECT_EQ(detect_row_form(parse_row(R"({"messages": [], "chosen": "y", "rejected": "z"})")), RowForm::messages);
  EXPECT_EQ(row_form_of("preference"), RowForm::preference);
}

TEST(PreferenceRow, FaultsAreOneSentence) {
  const std::pair<const char*, const char*> faults[] = {
      {R"({"prompt": "x", "chosen": "y", "rejected": "y"})", "are the same"},
      {R"({"prompt": "x", "chosen": "", "rejected": "y"})", "\"chosen\" is empty"},
      {R"({"prompt": "x", "chosen": "y", "rejected": ""})", "\"rejected\" is empty"},
      {R"({"prompt": "x", "chosen": "y", "rejected": [3]})", "wanted are two strings or two lists"},
      {R"({"prompt": 3, "chosen": "y", "rejected": "z"})", "\"prompt\" is number"},
      {R"({"chosen": "y", "rejected": "z"})", "have no common beginning"},
      {R"({"chosen": [{"role": "user", "content": "q"}], "rejected": [{"role": "user", "content": "r"}]})",
       "have no common first message"},
      {R"({"chosen": [{"role": "user", "content": "q"}], "rejected": [{"role": "user", "content": "q"},
           {"role": "assistant", "content": "a"}]})", "\"chosen\" is empty"},
      {R"({"prompt": "q", "chosen": [{"role": "assistant", "content": ""}], "rejected": [{"role": "assistant",
           "content": "a"}]})", "\"chosen\" is empty"},
      {R"({"prompt": "q", "chosen": [{"role": "wizard", "content": "x"}], "rejected": [{"role": "assistant",
           "content": "a"}]})", "has the role \"wizard\""},
      {R"({"prompt": [], "chosen": "y", "rejected": "z"})", "\"prompt\" is an empty list"}};
  for (const auto& [line, sentence] : faults) test::expect_error<DataError>([&, line = line] { read(line); }, sentence);
}

class PreferenceFile : public ::testing::Test {
 protected:
  Dataset open(const std::string& rows, const DatasetOptions& options = {}) const {
    return Dataset(folder_.write("pairs.jsonl", rows), tokenizer_, &*chat_, options);
  }
  // What the labels of a part of an example say.
  std::string labelled(const Example& example, std::size_t begin, std::size_t end) const {
    std::vector<text::TokenId> ids;
    for (std::size_t i = begin; i < end; ++i) {
      if (example.trained[i] != 0) ids.push_back(static_cast<text::TokenId>(example.tokens[i]));
    }
    return tokenizer_.decode(ids);
  }

  test::TemporaryFolder folder_;
  text::Tokenizer tokenizer_ = text::Tokenizer::load(test::source_path("models/tiny-qwen3"));
  std::optional<text::ChatTemplate> chat_ = text::ChatTemplate::load(test::source_path("models/tiny-qwen3"));
};

const std::string chat_row = R"({"prompt": [{"role": "user", "content": "Rain?"}], "chosen": "Yes, rain.", "rejected": "No."})"
                             "\n";
const std::string text_row = R"({"prompt": "It is", "chosen": " wet.", "rejected": " dry and warm."})" "\n";

TEST_F(PreferenceFile, LabelsTheAnswersAlone) {
  const Dataset chats = open(chat_row);
  EXPECT_EQ(chats.form(), RowForm::preference);
  const Example chat = chats.example(0);
  EXPECT_EQ(labelled(chat, 0, chat.rejected_begin), "Yes, rain.<|im_end|>");
  EXPECT_EQ(labelled(chat, chat.rejected_begin, chat.tokens.size()), "No.<|im_end|>");
  const Example text = open(text_row).example(0);
  EXPECT_EQ(labelled(text, 0, text.rejected_begin), " wet.<|im_end|>");
  EXPECT_EQ(labelled(text, text.rejected_begin, text.tokens.size()), " dry and warm.<|im_end|>");
}

TEST_F(PreferenceFile, BothSidesMakeTwoSegmentsOfOneStream) {
  const Dataset data = open(text_row + text_row);
  const U both = {0, 1};
  const Batch batch = data.batch(both);
  const Example example = data.example(0);
  const auto length = static_cast<std::uint32_t>(example.tokens.size());
  ASSERT_EQ(batch.tokens.size(), 2 * length);
  EXPECT_EQ(batch.position[example.rejected_begin], 0u);
  EXPECT_EQ(batch.segment_begin[example.rejected_begin], example.rejected_begin);
  EXPECT_EQ(batch.segment_end[0], example.rejected_begin);
  EXPECT_EQ(batch.segment_end[length - 1], length);
  ASSERT_EQ(batch.sides.size(), 5u);
  EXPECT_EQ(batch.sides.back(), batch.labels.size());
  for (std::size_t side = 0; side < 4; ++side) {
    for (std::uint32_t label = batch.sides[side]; label < batch.sides[side + 1]; ++label) {
      EXPECT_EQ(batch.row_of_label[label], side / 2);
      const bool rejected = batch.label_rows[label] % length >= example.rejected_begin;
      EXPECT_EQ(rejected, side % 2 == 1);
    }
  }
}

TEST_F(PreferenceFile, TheLongestLengthHoldsForEachSide) {
  const Dataset whole = open(text_row + chat_row);
  const Example example = whole.example(0);
  const auto rejected = static_cast<std::uint32_t>(example.tokens.size()) - example.rejected_begin;
  ASSERT_GT(rejected, example.rejected_begin);
  EXPECT_EQ(whole.longest_segment(0), rejected);
  // As long as its longer side: nothing is over-long.
  EXPECT_EQ(open(text_row, {.max_length = rejected}).counts().over_long_rows, 0u);
  test::expect_error<DataError>([&] { open(text_row, {.max_length = rejected - 1}); }, "1 of 1 rows");
  EXPECT_EQ(open(text_row + R"({"prompt": "a", "chosen": "b", "rejected": "c"})", {.overflow = Overflow::drop,
                                                                                   .max_length = rejected - 1}).size(), 1u);
  for (const std::size_t cache_bytes : {std::size_t{0}, std::size_t{1} << 20}) {
    const Example cut = open(text_row, {.overflow = Overflow::cut, .max_length = rejected - 1, .cache_bytes = cache_bytes}).example(0);
    EXPECT_EQ(cut.rejected_begin, example.rejected_begin);
    EXPECT_EQ(cut.tokens.size(), example.tokens.size() - 1);
  }
  test::expect_error<UsageError>([&] { open(text_row, {.overflow = Overflow::split}); }, "--overflow", "cannot be split");
}

TEST_F(PreferenceFile, APairThatIsCutToOneAnswerIsLeftOut) {
  const std::string long_prompt = R"({"prompt": "a b c d e f g h i j k l m n", "chosen": " o", "rejected": " p"})";
  const Dataset data = open(text_row + long_prompt, {.overflow = Overflow::cut, .max_length = 10});
  EXPECT_EQ(data.size(), 1u);
  EXPECT_EQ(data.counts().untrained_pieces, 1u);
}

TEST_F(PreferenceFile, ThePromptCannotBeTrained) {
  test::expect_error<UsageError>([&] { open(text_row, {.train_on = TrainOn::all}); }, "--train-on", "answers alone");
}

TEST_F(PreferenceFile, FaultsNameTheirLine) {
  test::expect_error<DataError>([&] { open(text_row + R"({"prompt": "x", "chosen": "y", "rejected": "y"})"); }, "line 2",
                                "are the same");
  EXPECT_EQ(open(text_row + R"({"prompt": "x", "chosen": "y", "rejected": "y"})", {.skip_bad_rows = true}).counts().bad_rows, 1u);
}

TEST(PreferenceBatch, RefusesWhatIsNoPair) {
  const Example pair{.tokens = {1, 2, 3, 4}, .trained = {0, 1, 0, 1}, .rejected_begin = 2};
  const Example single{.tokens = {1, 2}, .trained = {0, 1}};
  const Example one_sided{.tokens = {1, 2, 3, 4}, .trained = {0, 1, 0, 0}, .rejected_begin = 2};
  const Example no_second{.tokens = {1, 2}, .trained = {0, 1}, .rejected_begin = 2};
  EXPECT_EQ(make_batch(std::vector{pair, pair}).sides, (U{0, 1, 2, 3, 4}));
  EXPECT_THROW(make_batch(std::vector{pair, single}), UsageError);
  EXPECT_THROW(make_batch(std::vector{one_sided}), DataError);
  EXPECT_THROW(make_batch(std::vector{no_second}), UsageError);
}

}  // namespace
}  // namespace nibble::data::preference_test
