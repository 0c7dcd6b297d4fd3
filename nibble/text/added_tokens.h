#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "nibble/io/json.h"
#include "nibble/text/aligned_text.h"
#include "nibble/text/vocabulary.h"

namespace nibble::text {

// A token that is cut out of the text before the model sees it.
struct AddedToken {
  TokenId id = 0;
  std::string content;
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // takes in the white space before it
  bool rstrip = false;       // takes in the white space after it
  bool normalized = true;    // looked for in the normalized text
  bool special = false;      // left out when decoding without special tokens
};

// Reads content and flags; `id` is the caller's.
AddedToken read_added_token(const JsonObject& json, TokenId id);

// Finds added tokens in a text.
class AddedTokenFinder {
 public:
  // `content` is what to look for: the token's own, or its normalized form. The first of two with the same wins.
  void add(const AddedToken& token, std::string_view content);
  bool empty() const { return nodes_.size() == 1; }

  // A stretch of the text: a token with its stripped white space, or, without an id, what lies between tokens.
  struct Stretch {
    ByteSpan span;
    std::optional<TokenId> id;
  };
  // Cuts `text` into stretches, none of them empty. The longest token of the leftmost place counts. Without
  // `parse_special` special tokens are passed over as ordinary text.
  std::vector<Stretch> split(std::string_view text, bool parse_special) const;

 private:
  struct Traits {
    TokenId id;
    bool single_word, lstrip, rstrip, special;
  };
  struct Match {
    std::size_t end;
    const Traits* token;
  };
  static constexpr std::uint32_t no_token = UINT32_MAX;

  std::optional<Match> longest_at(std::string_view text, std::size_t at) const;

  // A trie over bytes: nodes_[n] is the index in tokens_ of what ends at node n.
  std::vector<std::uint32_t> nodes_ = {no_token};
  std::unordered_map<std::uint64_t, std::uint32_t> edges_;  // (node << 8 | byte) -> node
  std::array<bool, 256> starts_{};                          // bytes that some token starts with
  std::vector<Traits> tokens_;
};

}  // namespace nibble::text
