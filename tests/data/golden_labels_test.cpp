#include <gtest/gtest.h>

#include "nibble/data/dataset.h"
#include "nibble/io/safetensors.h"

namespace nibble::data::golden_labels_test {
namespace {

std::vector<std::int32_t> read_ints(const SafetensorsFile& file, std::string_view name) {
  const TensorInfo& tensor = file.at(name);
  std::vector<std::int32_t> values(tensor.numel());
  file.read(tensor, 0, std::as_writable_bytes(std::span(values)));
  return values;
}

// The ids and labels that PyTorch was given for the first rows of the shipped chats.
TEST(GoldenLabels, EqualThoseOfTheReference) {
  const fs::path root = NIBBLE_SOURCE_DIR;
  const SafetensorsFile golden(root / "tests/golden/tiny/golden.safetensors");
  const auto ids = read_ints(golden, "input_ids");
  const auto labels = read_ints(golden, "labels");
  const auto mask = read_ints(golden, "attention_mask");
  const auto rows = static_cast<std::size_t>(golden.at("input_ids").shape[0]);
  const std::size_t length = ids.size() / rows;

  const fs::path model = root / "models/tiny-qwen3";
  const auto tokenizer = text::Tokenizer::load(model);
  const auto chat_template = text::ChatTemplate::load(model);
  ASSERT_TRUE(chat_template.has_value());
  const Dataset data(root / "data/define/train.jsonl", tokenizer, &*chat_template, {});
  EXPECT_EQ(data.form(), RowForm::messages);
  EXPECT_EQ(data.size(), 8000u);

  ASSERT_EQ(rows, 4u);
  for (std::size_t row = 0; row < rows; ++row) {
    const Example example = data.example(row);
    std::vector<std::int32_t> expected_ids;
    std::vector<std::uint8_t> expected_trained;
    for (std::size_t i = row * length; i < (row + 1) * length; ++i) {
      if (mask[i] == 0) continue;
      expected_ids.push_back(ids[i]);
      expected_trained.push_back(labels[i] == -100 ? 0 : 1);
      EXPECT_TRUE(labels[i] == -100 || labels[i] == ids[i]);
    }
    EXPECT_EQ(example.tokens, expected_ids) << row;
    EXPECT_EQ(example.trained, expected_trained) << row;
  }
}

}  // namespace
}  // namespace nibble::data::golden_labels_test
