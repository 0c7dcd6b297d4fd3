#pragma once

#include <memory>
#include <string>

#include "nibble/io/json.h"
#include "nibble/text/aligned_text.h"

namespace nibble::text {

// A step that rewrites the text before it is split. Immutable, safe to share between threads.
class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual void apply(AlignedText& text) const = 0;
};

// The "normalizer" of a tokenizer.json: Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, Replace,
// Prepend and ByteLevel. Any other type is a DataError.
std::unique_ptr<Normalizer> make_normalizer(const JsonObject& json);

}  // namespace nibble::text
