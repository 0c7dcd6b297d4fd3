#pragma once

#include <memory>
#include <unordered_map>

#include "nibble/text/added_tokens.h"
#include "nibble/text/bpe.h"
#include "nibble/text/decoder.h"
#include "nibble/text/normalizer.h"
#include "nibble/text/post_processor.h"
#include "nibble/text/pre_tokenizer.h"
#include "nibble/text/tokenizer.h"

namespace nibble::text {

// What a tokenizer is made of; internal to tokenizer.cpp and tokenizer_build.cpp.
struct Tokenizer::Parts {
  TokenizerConfig config;
  std::unique_ptr<Normalizer> normalizer;  // may be absent
  PreTokenizers pre_tokenizers;
  std::unique_ptr<Bpe> model;
  std::unique_ptr<Decoder> decoder;  // may be absent
  SpecialFrame frame;

  Vocabulary added;  // the added tokens alone; some are in the model's vocabulary too
  std::unordered_map<TokenId, AddedToken> added_by_id;
  std::unordered_map<TokenId, std::string> normalized_content;
  AddedTokenFinder raw_finder;
  AddedTokenFinder normalized_finder;
};

}  // namespace nibble::text
