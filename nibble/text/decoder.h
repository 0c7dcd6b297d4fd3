#pragma once

#include <memory>
#include <string>
#include <vector>

#include "nibble/io/json.h"

namespace nibble::text {

// A step from tokens back to text. Immutable, safe to share between threads.
class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual void apply(std::vector<std::string>& tokens) const = 0;
  // The bytes that a token spells; those of several tokens may make up one character.
  virtual std::string bytes(std::string token) const { return token; }
};

// The "decoder" of a tokenizer.json: Sequence, ByteLevel, ByteFallback, Fuse, Metaspace, Replace and Strip. Any other
// type is a DataError.
std::unique_ptr<Decoder> make_decoder(const JsonObject& json);

}  // namespace nibble::text
