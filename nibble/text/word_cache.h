#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/text/vocabulary.h"

namespace nibble::text {

// A token of a word and how many of the word's bytes it stands for.
struct WordToken {
  TokenId id;
  std::uint32_t length;

  bool operator==(const WordToken&) const = default;
};

// The tokens of words seen before. Any number of threads may use one. Its size is bounded: a word has one slot, given
// by its hash, and displaces the word that was there.
class WordCache {
 public:
  static constexpr std::size_t longest_word = 64;  // bytes; longer ones are not kept

  WordCache();
  // Appends the tokens of `word`, or returns false.
  bool find(std::string_view word, std::vector<WordToken>& out) const;
  void store(std::string_view word, const WordToken* tokens, std::size_t count) const;

 private:
  static constexpr std::size_t shard_count = 64;
  static constexpr std::size_t slots_per_shard = 1024;

  struct Slot {
    std::string word;
    std::vector<WordToken> tokens;
  };
  struct Shard {
    std::mutex mutex;
    std::vector<Slot> slots;
  };
  // A cache changes nothing that its owner's callers can see.
  mutable std::array<Shard, shard_count> shards_;
};

}  // namespace nibble::text
