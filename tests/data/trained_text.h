#pragma once

#include <string>

#include "nibble/data/row_encoder.h"
#include "nibble/io/file.h"

namespace nibble::test {

using namespace nibble::data;

inline const fs::path root = NIBBLE_SOURCE_DIR;

// The shipped tokenizer with the special tokens of the other families.
inline const text::Tokenizer& tokenizer() {
  static const text::Tokenizer instance = [] {
    auto json = nlohmann::ordered_json::parse(read_file(root / "models/tiny-qwen3/tokenizer.json"));
    for (const char* token : {"<s>", "</s>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "[INST]",
                              "[/INST]", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|end|>"}) {
      json["added_tokens"].push_back({{"id", 5000 + static_cast<int>(json["added_tokens"].size())},
                                      {"content", token},
                                      {"single_word", false},
                                      {"lstrip", false},
                                      {"rstrip", false},
                                      {"normalized", false},
                                      {"special", true}});
    }
    return text::Tokenizer::from_json(json.dump(), read_file(root / "models/tiny-qwen3/tokenizer_config.json"));
  }();
  return instance;
}

inline text::ChatTemplate family(const std::string& name) {
  text::TokenizerConfig config;
  config.bos_token = "<s>";
  config.eos_token = "</s>";
  return text::ChatTemplate::parse(read_file(root / "tests/text/templates" / (name + ".jinja")), config);
}

// The trained stretches of the text, each in brackets.
inline std::string trained(const text::ChatTemplate& chat_template, const std::string& row,
                           TrainOn train_on = TrainOn::assistant, Think think = Think::stock) {
  const OrderedJson json = parse_row(row);
  const RowEncoder encoder(tokenizer(), &chat_template, train_on, OrderedJson::object(), think);
  const Example example = encoder.encode(read_row(json, detect_row_form(json)));
  std::string result;
  std::vector<text::TokenId> stretch;
  for (std::size_t i = 0; i <= example.tokens.size(); ++i) {
    if (i < example.tokens.size() && example.trained[i] != 0) {
      stretch.push_back(static_cast<text::TokenId>(example.tokens[i]));
    } else if (!stretch.empty()) {
      result.append("[").append(tokenizer().decode(stretch)).append("]");
      stretch.clear();
    }
  }
  return result;
}

}  // namespace nibble::test
