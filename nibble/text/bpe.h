#pragma once

#include <array>
#include <bitset>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "nibble/io/json.h"
#include "nibble/text/merge_table.h"
#include "nibble/text/vocabulary.h"
#include "nibble/text/word_cache.h"

namespace nibble::text {

// The byte-pair model of a tokenizer.json. Immutable but for its cache of words; safe to share between threads.
class Bpe {
 public:
  // `byte_level`: pieces come as plain bytes and are mapped to the byte-level alphabet here. A model of another type,
  // or one that is not consistent, is a DataError.
  Bpe(const JsonObject& model, bool byte_level);

  // Appends the tokens of a piece of valid UTF-8. Their lengths add up to the piece's, unless the model has neither a
  // token nor an unknown token for some character: such a character is left out, as `tokenizers` does.
  void tokenize(std::string_view piece, std::vector<WordToken>& out) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  void read_vocabulary(const JsonObject& model);
  void read_merges(const JsonObject& model);
  void note_seam(std::string_view left, std::string_view right);
  bool may_merge(char32_t left, char32_t right) const;
  void tokenize_word(std::string_view word, std::vector<WordToken>& out) const;
  std::vector<WordToken> merge_word(std::string_view word) const;
  void add_symbols(std::string_view text, std::vector<WordToken>& out) const;

  std::string origin_;
  Vocabulary vocabulary_;
  MergeTable merges_;
  std::optional<std::string> unknown_token_;
  std::array<std::optional<TokenId>, 256> byte_tokens_;  // "<0x00>" to "<0xFF>"
  bool byte_level_;
  bool fuse_unknown_;
  bool byte_fallback_;
  bool ignore_merges_;

  // Pairs of characters across which some merge joins tokens. Between any other two a long piece can be cut without
  // changing its tokens, so that the cache serves models without a pre-tokenizer too.
  bool can_cut_ = false;
  std::bitset<128 * 128> ascii_seams_;
  std::unordered_set<std::uint64_t> seams_;

  std::unique_ptr<WordCache> cache_ = std::make_unique<WordCache>();
};

}  // namespace nibble::text
