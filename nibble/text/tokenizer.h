#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/io/json.h"
#include "nibble/text/aligned_text.h"
#include "nibble/text/tokenizer_config.h"
#include "nibble/text/vocabulary.h"

namespace nibble::text {

struct EncodeOptions {
  bool add_special_tokens = true;  // those that the model's own tokenizer puts around a text (bos and the like)
  bool parse_special = true;       // "<|im_end|>" in the text becomes that token; otherwise it is ordinary text
  bool offsets = false;            // fill Encoding::offsets
};

struct Encoding {
  std::vector<TokenId> ids;
  // For each id the bytes of the given text that it stands for, in order. A token that was put around the text, or that
  // holds nothing but an inserted space, has an empty span. A character that normalization made of several is not
  // split: each of its tokens has all of their bytes.
  std::vector<ByteSpan> offsets;
  // Sequences of bytes that are not UTF-8, each read as one U+FFFD.
  std::size_t replaced = 0;
};

struct DecodeOptions {
  bool skip_special_tokens = false;
};

// A Hugging Face fast tokenizer with a BPE model: gives the ids that Python's `tokenizers` gives. One Tokenizer may be
// used by any number of threads; its cache of words is bounded (WordCache) and shared by them.
class Tokenizer {
 public:
  // Reads tokenizer.json and, where it exists, tokenizer_config.json; or a GGUF file's metadata, or where these hold another kind of
  // tokenizer the two files beside it. A file that is broken, inconsistent or beyond
  // what is supported is a DataError that names the file and the place in it.
  static Tokenizer load(const fs::path& model);
  // From the text of the files; `config_json` may be empty.
  static Tokenizer from_json(std::string_view tokenizer_json, std::string_view config_json = {});

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // `text` may hold any bytes, up to 2 GiB.
  Encoding encode(std::string_view text, const EncodeOptions& options = {}) const;
  // Ids that name no token are passed over, as `tokenizers` does: models often have more rows than tokens.
  std::string decode(std::span<const TokenId> ids, const DecodeOptions& options = {}) const;

  std::optional<TokenId> token_to_id(std::string_view token) const;
  // The token as the vocabulary writes it (byte-level tokens in their alphabet).
  std::optional<std::string> id_to_token(TokenId id) const;
  // The bytes that the token spells: perhaps a part of a character, and before the decoder's handling of spaces.
  std::string token_bytes(TokenId id) const;
  // Number of tokens, and one more than the highest id; they differ where ids have gaps.
  std::size_t vocab_size() const;
  TokenId id_end() const;
  bool is_special(TokenId id) const;

  const TokenizerConfig& config() const;
  // Ids of the tokens that the configuration names, where the vocabulary has them.
  std::optional<TokenId> bos_id() const;
  std::optional<TokenId> eos_id() const;
  std::optional<TokenId> pad_id() const;
  std::optional<TokenId> unk_id() const;

 private:
  struct Parts;
  explicit Tokenizer(std::unique_ptr<const Parts> parts);
  static Tokenizer build(const Json& tokenizer_json, std::string_view origin, TokenizerConfig config, std::string_view config_origin);

  std::unique_ptr<const Parts> parts_;
};

// Decodes one id after the other, giving out text as soon as its characters are whole. The pieces together are
// Tokenizer::decode of all ids, except for byte tokens that spell broken UTF-8: those come out one U+FFFD earlier or
// later.
class StreamDecoder {
 public:
  // `tokenizer` must outlive it.
  explicit StreamDecoder(const Tokenizer& tokenizer, const DecodeOptions& options = {});

  // The text that `id` completes; empty while a character is in parts.
  std::string push(TokenId id);
  // What is left, with U+FFFD for a character that was never completed. Starts over.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  DecodeOptions options_;
  std::vector<TokenId> ids_;  // those of the last text given out, as context, then those held back
  std::size_t known_ = 0;     // how many of ids_ are context
  std::string shown_;         // their text
  std::string tail_;          // the bytes held back: a part of a character
};

}  // namespace nibble::text
