#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "nibble/io/file.h"
#include "nibble/text/vocabulary.h"

namespace nibble::text {

inline constexpr const char *tokenizer_file = "tokenizer.json", *tokenizer_config_file = "tokenizer_config.json";

// The files of a tokenizer with its chat template, by name: tokenizer.json, tokenizer_config.json and those beside them. Files of slow
// tokenizers (vocab.json, merges.txt) are not among them.
using TokenizerFiles = std::map<std::string, std::string>;

// Whether the folder has a tokenizer of its own, as one of an adapter whose tokens the model's does not know.
bool has_tokenizer(const fs::path& folder);
// Where the tokenizer of a model under an adapter lies: in the adapter's folder if that has one. `adapter` may be empty.
fs::path tokenizer_folder(const fs::path& model, const fs::path& adapter);

// Of a folder, or what they would be of a GGUF file. DataError as of Tokenizer::load.
TokenizerFiles read_tokenizer_files(const fs::path& model);
void write_tokenizer_files(const fs::path& folder, const TokenizerFiles& files);

struct NewToken {
  std::string content;
  TokenId id = 0;
  bool special = true;  // left out when decoding without special tokens
};
// Adds tokens to both files, as transformers' add_tokens does.
void add_tokens(TokenizerFiles& files, std::span<const NewToken> tokens);

}  // namespace nibble::text
