#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace nibble::text {

using TokenId = std::uint32_t;

// Ids beyond this are taken for a fault of the file: the largest public vocabularies have some 260,000 tokens.
constexpr TokenId max_token_id = (1u << 22) - 1;

// Tokens and their ids, each found by the other. Ids may have gaps.
class Vocabulary {
 public:
  Vocabulary() = default;
  Vocabulary(Vocabulary&&) = default;
  Vocabulary& operator=(Vocabulary&&) = default;

  void reserve(std::size_t count);
  // A token or an id that is there already with another partner is a DataError, which `where` starts.
  void add(std::string token, TokenId id, std::string_view where);

  std::optional<TokenId> find(std::string_view token) const;
  // nullptr where no token has this id.
  const std::string* token(TokenId id) const;
  // Number of tokens, and one more than the highest id.
  std::size_t count() const { return ids_.size(); }
  TokenId id_end() const { return static_cast<TokenId>(tokens_.size()); }

 private:
  // Node-based, so that tokens_ may point to its keys.
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  std::unordered_map<std::string, TokenId, Hash, std::equal_to<>> ids_;
  std::vector<const std::string*> tokens_;
};

}  // namespace nibble::text
