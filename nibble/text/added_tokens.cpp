#include "nibble/text/added_tokens.h"

#include <algorithm>

#include "nibble/text/char_class.h"
#include "nibble/text/utf8.h"

namespace nibble::text {
namespace {

char32_t char_before(std::string_view text, std::size_t end) {
  std::size_t at = end - 1;
  while ((static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return decode_utf8(text, at).code;
}

bool stands_alone(std::string_view text, std::size_t begin, std::size_t end) {
  return (begin == 0 || !is_word(char_before(text, begin))) &&
         (end == text.size() || !is_word(decode_utf8(text, end).code));
}

std::size_t white_space_begin(std::string_view text, std::size_t end) {
  while (end > 0) {
    const char32_t code = char_before(text, end);
    if (!is_whitespace(code)) break;
    end -= to_utf8(code).size();
  }
  return end;
}

std::size_t white_space_end(std::string_view text, std::size_t begin) {
  while (begin < text.size()) {
    const Utf8Char c = decode_utf8(text, begin);
    if (!is_whitespace(c.code)) break;
    begin += c.length;
  }
  return begin;
}

}  // namespace

AddedToken read_added_token(const JsonObject& json, TokenId id) {
  AddedToken token;
  token.id = id;
  token.content = json.string("content");
  token.special = json.boolean("special", false);
  token.single_word = json.boolean("single_word", false);
  token.lstrip = json.boolean("lstrip", false);
  token.rstrip = json.boolean("rstrip", false);
  token.normalized = json.boolean("normalized", !token.special);
  return token;
}

void AddedTokenFinder::add(const AddedToken& token, std::string_view content) {
  if (content.empty()) return;
  std::uint32_t node = 0;
  for (const char c : content) {
    const auto byte = static_cast<unsigned char>(c);
    const auto [edge, is_new] =
        edges_.try_emplace(std::uint64_t{node} << 8 | byte, static_cast<std::uint32_t>(nodes_.size()));
    if (is_new) nodes_.push_back(no_token);
    node = edge->second;
  }
  starts_[static_cast<unsigned char>(content[0])] = true;
  if (nodes_[node] != no_token) return;
  nodes_[node] = static_cast<std::uint32_t>(tokens_.size());
  tokens_.push_back({token.id, token.single_word, token.lstrip, token.rstrip, token.special});
}

std::optional<AddedTokenFinder::Match> AddedTokenFinder::longest_at(std::string_view text, std::size_t at) const {
  std::optional<Match> longest;
  std::uint32_t node = 0;
  for (std::size_t i = at; i < text.size(); ++i) {
    const auto edge = edges_.find(std::uint64_t{node} << 8 | static_cast<unsigned char>(text[i]));
    if (edge == edges_.end()) break;
    node = edge->second;
    if (nodes_[node] != no_token) longest = Match{i + 1, &tokens_[nodes_[node]]};
  }
  return longest;
}

std::vector<AddedTokenFinder::Stretch> AddedTokenFinder::split(std::string_view text, bool parse_special) const {
  std::vector<Stretch> out;
  const auto push = [&](std::size_t begin, std::size_t end, std::optional<TokenId> id) {
    if (begin < end) out.push_back({{static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end)}, id});
  };
  std::size_t taken = 0;
  for (std::size_t at = 0; at < text.size();) {
    const auto match = starts_[static_cast<unsigned char>(text[at])] ? longest_at(text, at) : std::nullopt;
    if (!match) {
      ++at;
      continue;
    }
    // A match that does not count is still passed over whole, as `tokenizers` does.
    const Traits& token = *match->token;
    std::size_t begin = at;
    std::size_t end = match->end;
    at = match->end;
    if (token.special && !parse_special) continue;
    if (token.single_word && !stands_alone(text, begin, end)) continue;
    if (token.lstrip) begin = std::max(white_space_begin(text, begin), taken);
    if (token.rstrip) end = white_space_end(text, end);
    push(taken, begin, std::nullopt);
    push(begin, end, token.id);
    taken = end;
  }
  push(taken, text.size(), std::nullopt);
  return out;
}

}  // namespace nibble::text
