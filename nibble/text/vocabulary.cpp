#include "nibble/text/vocabulary.h"

#include "nibble/base/error.h"

namespace nibble::text {

void Vocabulary::reserve(std::size_t count) {
  ids_.reserve(count);
  tokens_.reserve(count);
}

void Vocabulary::add(std::string token, TokenId id, std::string_view where) {
  check<DataError>(id <= max_token_id, where, "The token \"{}\" has the id {}; at most {} is allowed.", token, id,
                   max_token_id);
  const std::string* holder = this->token(id);
  check<DataError>(holder == nullptr || *holder == token, where, "The id {} is given to two tokens, \"{}\" and \"{}\".",
                   id, holder == nullptr ? "" : *holder, token);
  const auto [at, is_new] = ids_.try_emplace(std::move(token), id);
  check<DataError>(is_new || at->second == id, where, "The token \"{}\" has two ids, {} and {}.", at->first, at->second,
                   id);
  if (id >= tokens_.size()) tokens_.resize(id + 1, nullptr);
  tokens_[id] = &at->first;
}

std::optional<TokenId> Vocabulary::find(std::string_view token) const {
  const auto at = ids_.find(token);
  if (at == ids_.end()) return std::nullopt;
  return at->second;
}

const std::string* Vocabulary::token(TokenId id) const { return id < tokens_.size() ? tokens_[id] : nullptr; }

}  // namespace nibble::text
