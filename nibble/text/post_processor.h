#pragma once

#include <vector>

#include "nibble/io/json.h"
#include "nibble/text/vocabulary.h"

namespace nibble::text {

// The special tokens that a tokenizer puts around a text.
struct SpecialFrame {
  std::vector<TokenId> before;
  std::vector<TokenId> after;
};

// Reads the "post_processor" of a tokenizer.json: Sequence, TemplateProcessing, BertProcessing, RobertaProcessing and
// ByteLevel (which concerns offsets alone). Any other type is a DataError.
SpecialFrame read_post_processor(const JsonObject& json);

}  // namespace nibble::text
