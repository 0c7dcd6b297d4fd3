#pragma once

#include <memory>
#include <vector>

#include "nibble/io/json.h"
#include "nibble/text/aligned_text.h"

namespace nibble::text {

// A text and the pieces of it that are tokenized each on its own; what lies in no piece was removed.
struct Pieces {
  AlignedText text;
  std::vector<ByteSpan> spans;
};

// A step that splits pieces further, or rewrites them. Immutable, safe to share between threads.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void apply(Pieces& pieces) const = 0;
};

// The steps of the "pre_tokenizer" of a tokenizer.json.
struct PreTokenizers {
  std::vector<std::unique_ptr<PreTokenizer>> steps;
  // The last step maps bytes to the byte-level alphabet. It is left to the model, which does it once a distinct word.
  bool byte_level = false;
};

// Adds the steps of `json`: Sequence, Split, ByteLevel, Metaspace, Digits, Punctuation, Whitespace, WhitespaceSplit and
// CharDelimiterSplit. Any other type is a DataError.
void add_pre_tokenizers(const JsonObject& json, PreTokenizers& out);

}  // namespace nibble::text
