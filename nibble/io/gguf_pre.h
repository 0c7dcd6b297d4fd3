#pragma once

#include "nibble/io/json.h"

// Private to io: the ways of cutting text into words that "tokenizer.ggml.pre" names.
namespace nibble {

struct GgufPre {
  std::string_view name;    // as llama.cpp's converter writes it
  Json (*pre_tokenizer)();  // of a tokenizer.json
  bool normalizes;          // to NFC before
  bool ignore_merges;       // words of the vocabulary are one token
  bool adds_bos;            // where the file does not say
};

// By any of the names that stand for it; null where there is none.
const GgufPre* gguf_pre(std::string_view name);
// "qwen2, llama-bpe, ...": those that are known.
std::string gguf_pre_names();
// That whose pre-tokenizer is the one of a tokenizer.json; null where there is none.
const GgufPre* gguf_pre_of(const Json& tokenizer);

}  // namespace nibble
