#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "nibble/text/word_cache.h"

namespace nibble::text {

// The merges of byte-pair encoding (Sennrich et al. 2016): two neighbouring tokens become one, in order of rank.
class MergeTable {
 public:
  struct Merge {
    std::uint32_t rank;
    TokenId merged;
  };

  // Makes room for `count` merges.
  explicit MergeTable(std::size_t count = 0);
  // A pair that is there already is overwritten. No more pairs than the constructor was told.
  void set(TokenId left, TokenId right, Merge merge);
  const Merge* find(TokenId left, TokenId right) const;

  // Applies the merge of lowest rank, the leftmost of equals, until none is left. n log n in the word's length.
  void apply(std::vector<WordToken>& word) const;

 private:
  struct Entry {
    std::uint64_t pair;
    Merge merge;
  };

  std::size_t slot_of(std::uint64_t pair) const;
  void apply_short(std::vector<WordToken>& word) const;
  void apply_long(std::vector<WordToken>& word) const;

  std::vector<Entry> entries_;  // open addressing, at most half full
  int shift_ = 0;
};

}  // namespace nibble::text
