#include "nibble/text/bpe.h"

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/text/byte_level.h"
#include "nibble/text/utf8.h"

namespace nibble::text {
namespace {

constexpr std::size_t shortest_cut_piece = 24;  // bytes; a shorter one is looked up whole

char32_t last_char(std::string_view text) {
  std::size_t at = text.size() - 1;
  while ((static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return decode_utf8(text, at).code;
}

bool is_byte_token(std::string_view token) {
  return token.size() == 6 && token.starts_with("<0x") && token.ends_with('>');
}

struct MergeNames {
  std::string_view left;
  std::string_view right;
};

// A merge is "left right" in older files, ["left", "right"] in newer ones.
MergeNames merge_names(const Json& merge, std::size_t index, std::string_view origin) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return {merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>()};
  }
  check<DataError>(merge.is_string(), origin, "merges[{}] must be \"left right\" or [\"left\", \"right\"].", index);
  const std::string_view text = merge.get_ref<const std::string&>();
  const std::size_t space = text.find(' ');
  check<DataError>(space != std::string_view::npos && text.find(' ', space + 1) == std::string_view::npos, origin,
                   "merges[{}] is \"{}\"; two tokens with one space between them are expected.", index, text);
  return {text.substr(0, space), text.substr(space + 1)};
}

}  // namespace

Bpe::Bpe(const JsonObject& model, bool byte_level) : origin_(model.origin()), byte_level_(byte_level) {
  // Files of before the key "type" existed hold BPE when they have merges.
  const std::string type = model.string("type", model.has("merges") ? "BPE" : "");
  check<DataError>(type == "BPE", origin_, "The model type \"{}\" is not supported; only BPE is.", type);
  check<DataError>(model.number("dropout", {0.0, 1.0}, 0.0) == 0.0, origin_,
                   "The model has a dropout of {}; only null or 0 give the same tokens each time.",
                   model.number("dropout", {0.0, 1.0}, 0.0));
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    check<DataError>(model.string(key, "").empty(), origin_,
                     "The key \"{}\" is \"{}\"; only null or \"\" is supported.", key, model.string(key, ""));
  }
  fuse_unknown_ = model.boolean("fuse_unk", false);
  byte_fallback_ = model.boolean("byte_fallback", false);
  ignore_merges_ = model.boolean("ignore_merges", false);
  if (model.has("unk_token")) unknown_token_ = model.string("unk_token");
  read_vocabulary(model);
  read_merges(model);
}

void Bpe::read_vocabulary(const JsonObject& model) {
  const auto vocabulary = model.object("vocab");
  if (!vocabulary) model.fail_key("vocab", "an object of tokens and ids");
  vocabulary_.reserve(vocabulary->json().size());
  for (const auto& [token, id] : vocabulary->json().items()) {
    check<DataError>(id.is_number_unsigned() && id.get<std::uint64_t>() <= max_token_id, vocabulary->origin(),
                     "The token \"{}\" has the id {}; an integer from 0 to {} is expected.", token, id.dump(),
                     max_token_id);
    vocabulary_.add(token, id.get<TokenId>(), vocabulary->origin());
  }
  bool all_bytes = true;
  for (std::size_t byte = 0; byte < byte_tokens_.size(); ++byte) {
    byte_tokens_[byte] = vocabulary_.find(fmt::format("<0x{:02X}>", byte));
    all_bytes &= byte_tokens_[byte].has_value();
  }
  // Whole words of the vocabulary and unknown tokens that wait to be fused reach across any cut.
  can_cut_ = !byte_level_ && !ignore_merges_ && (byte_fallback_ ? all_bytes : !fuse_unknown_);
}

void Bpe::read_merges(const JsonObject& model) {
  const auto found = model.json().find("merges");
  if (found == model.json().end() || !found->is_array()) model.fail_key("merges", "a list");
  merges_ = MergeTable(found->size());
  const auto id_of = [&](std::size_t index, std::string_view token) {
    const auto id = vocabulary_.find(token);
    check<DataError>(id.has_value() && !token.empty(), origin_,
                     "merges[{}] names the token \"{}\", which the vocabulary lacks.", index, token);
    return *id;
  };
  std::uint32_t rank = 0;
  std::string merged;
  for (std::size_t index = 0; index < found->size(); ++index) {
    const Json& merge = (*found)[index];
    if (merge.is_string() && merge.get_ref<const std::string&>().starts_with("#version")) continue;
    const auto [left, right] = merge_names(merge, index, origin_);
    merged.assign(left).append(right);
    const TokenId left_id = id_of(index, left);
    const TokenId right_id = id_of(index, right);
    merges_.set(left_id, right_id, {rank++, id_of(index, merged)});
    if (can_cut_) note_seam(left, right);
  }
}

void Bpe::note_seam(std::string_view left, std::string_view right) {
  // A byte token stands for a part of any character, so its seams are not known.
  can_cut_ = !is_byte_token(left) && !is_byte_token(right);
  const char32_t a = last_char(left);
  const char32_t b = decode_utf8(right, 0).code;
  if (a < 128 && b < 128) {
    ascii_seams_.set(a * 128 + b);
  } else {
    seams_.insert(std::uint64_t{a} << 32 | b);
  }
}

bool Bpe::may_merge(char32_t left, char32_t right) const {
  if (left < 128 && right < 128) return ascii_seams_.test(left * 128 + right);
  return seams_.contains(std::uint64_t{left} << 32 | right);
}

void Bpe::tokenize(std::string_view piece, std::vector<WordToken>& out) const {
  if (!can_cut_ || piece.size() < shortest_cut_piece) return tokenize_word(piece, out);
  std::size_t begin = 0;
  Utf8Char previous = decode_utf8(piece, 0);
  for (std::size_t at = previous.length; at < piece.size();) {
    const Utf8Char next = decode_utf8(piece, at);
    if (!may_merge(previous.code, next.code)) {
      tokenize_word(piece.substr(begin, at - begin), out);
      begin = at;
    }
    previous = next;
    at += next.length;
  }
  tokenize_word(piece.substr(begin), out);
}

void Bpe::tokenize_word(std::string_view word, std::vector<WordToken>& out) const {
  if (word.empty()) return;
  if (word.size() > WordCache::longest_word) {
    const std::vector<WordToken> tokens = merge_word(word);
    out.insert(out.end(), tokens.begin(), tokens.end());
    return;
  }
  if (cache_->find(word, out)) return;
  const std::vector<WordToken> tokens = merge_word(word);
  out.insert(out.end(), tokens.begin(), tokens.end());
  cache_->store(word, tokens.data(), tokens.size());
}

std::vector<WordToken> Bpe::merge_word(std::string_view word) const {
  const std::string mapped = byte_level_ ? to_byte_level(word) : "";
  const std::string_view text = byte_level_ ? std::string_view(mapped) : word;
  if (ignore_merges_) {
    if (const auto id = vocabulary_.find(text)) return {{*id, static_cast<std::uint32_t>(word.size())}};
  }
  std::vector<WordToken> tokens;
  tokens.reserve(word.size());
  add_symbols(text, tokens);
  merges_.apply(tokens);
  return tokens;
}

// One token a character; what the vocabulary lacks becomes its bytes' tokens or the unknown token.
void Bpe::add_symbols(std::string_view text, std::vector<WordToken>& out) const {
  std::optional<WordToken> unknown;
  const auto flush_unknown = [&] {
    if (unknown) out.push_back(*unknown);
    unknown.reset();
  };
  for (std::size_t at = 0; at < text.size();) {
    const std::uint32_t bytes = utf8_length(static_cast<unsigned char>(text[at]));
    const std::string_view symbol = text.substr(at, bytes);
    const std::uint32_t length = byte_level_ ? 1 : bytes;
    at += bytes;
    if (const auto id = vocabulary_.find(symbol)) {
      flush_unknown();
      out.push_back({*id, length});
      continue;
    }
    const auto token_of = [&](char byte) { return byte_tokens_[static_cast<unsigned char>(byte)]; };
    // In `tokenizers` byte tokens do not flush an unknown token that waits to be fused; it comes after them.
    if (byte_fallback_ && std::all_of(symbol.begin(), symbol.end(), [&](char b) { return token_of(b).has_value(); })) {
      for (const char byte : symbol) out.push_back({*token_of(byte), 1});
      continue;
    }
    if (!unknown_token_) continue;
    if (unknown && fuse_unknown_) {
      unknown->length += length;
      continue;
    }
    flush_unknown();
    const auto id = vocabulary_.find(*unknown_token_);
    check<DataError>(id.has_value(), origin_,
                     "The unknown token \"{}\" is needed for \"{}\", but the vocabulary lacks it.", *unknown_token_,
                     symbol);
    unknown = {{*id, length}};
  }
  flush_unknown();
}

}  // namespace nibble::text
