#pragma once

#include "nibble/io/gguf.h"

// A tokenizer in a GGUF file's metadata (tokenizer.ggml.*) and in the files of Hugging Face. Byte-level BPE alone
// ("gpt2"): how it cuts text into words stands in GGUF as a name, "tokenizer.ggml.pre", behind which are published
// patterns.
namespace nibble {

// What a token is for, as "tokenizer.ggml.token_type" says it (gguf-py, TokenType).
namespace gguf_token {
enum Type : std::int32_t { normal = 1, unknown, control, user_defined, unused, byte };
}

// What tokenizer.json and tokenizer_config.json (with its chat template) would say. DataError names file and key where
// it is of another model than byte-level BPE, cuts words in a way that is not known, or does not fit together.
struct HfTokenizer {
  Json tokenizer, config;
};
HfTokenizer hf_tokenizer(const GgufFile& file);
// The same of a folder as it is, or of a GGUF file; where that has another kind of tokenizer, of the files beside it.
HfTokenizer read_hf_tokenizer(const fs::path& model);
// The second of them, which every file has: named tokens as far as the file knows them, and the template.
Json hf_tokenizer_config(const GgufFile& file);

// The other way, as llama.cpp's converter does it: the keys for the tokenizer of a model whose embedding has `rows`
// rows; the template is "chat_template" of the config. DataError that begins with `origin` where llama.cpp would read
// it as something else.
GgufMetadata gguf_tokenizer(const HfTokenizer& files, std::int64_t rows, const std::string& origin);

}  // namespace nibble
