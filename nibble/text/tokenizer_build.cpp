// Reading the files of a tokenizer.

#include <algorithm>
#include <map>

#include "nibble/base/error.h"
#include "nibble/io/gguf_tokenizer.h"
#include "nibble/text/json_pieces.h"
#include "nibble/text/tokenizer_files.h"
#include "nibble/text/tokenizer_parts.h"

namespace nibble::text {
namespace {

// An added token may repeat one of the model's, with the same id.
void check_against_model(const AddedToken& token, const Vocabulary& model, std::string_view origin) {
  const auto id = model.find(token.content);
  check<DataError>(!id || *id == token.id, origin, "The added token \"{}\" has the id {}, in the vocabulary {}.",
                   token.content, token.id, id.value_or(0));
  const std::string* holder = model.token(token.id);
  check<DataError>(holder == nullptr || *holder == token.content, origin,
                   "The added token \"{}\" has the id {}, which is that of \"{}\".", token.content, token.id,
                   holder == nullptr ? "" : *holder);
}

std::vector<AddedToken> read_added_tokens(const JsonObject& json) {
  std::vector<AddedToken> tokens;
  if (!json.has("added_tokens")) return tokens;
  for (const JsonObject& token : read_objects(json, "added_tokens")) {
    tokens.push_back(read_added_token(token, static_cast<TokenId>(token.integer("id", {0, max_token_id}))));
  }
  return tokens;
}

// The configuration's flags take precedence, as in transformers.
void apply_bos_and_eos(const TokenizerConfig& config, std::optional<TokenId> bos, std::optional<TokenId> eos,
                       SpecialFrame& frame) {
  const auto set = [](std::vector<TokenId>& side, std::optional<bool> wanted, std::optional<TokenId> id) {
    if (!wanted || !id) return;
    const bool there = std::find(side.begin(), side.end(), *id) != side.end();
    if (*wanted && !there) side.push_back(*id);
    if (!*wanted) std::erase(side, *id);
  };
  set(frame.before, config.add_bos_token, bos);
  set(frame.after, config.add_eos_token, eos);
}

}  // namespace

Tokenizer Tokenizer::load(const fs::path& model) {
  if (is_gguf(model)) {
    const HfTokenizer files = read_hf_tokenizer(model);
    return build(files.tokenizer, model.string(), tokenizer_config_of(files.config, model.string()), model.string());
  }
  const fs::path config_path = model / tokenizer_config_file;
  TokenizerConfig config;
  if (fs::exists(config_path)) config = read_tokenizer_config(read_file(config_path), config_path.string());
  const fs::path path = model / tokenizer_file;
  check<DataError>(fs::exists(path) || !fs::exists(model / "tokenizer.model"), path.string(),
                   "The folder has a tokenizer.model of SentencePiece alone, which is not read; transformers makes a {} of it: python3 -c "
                   "\"from transformers import AutoTokenizer as T; T.from_pretrained('FOLDER').save_pretrained('FOLDER')\".",
                   tokenizer_file);
  check<DataError>(fs::exists(path), path.string(), "The file does not exist; a model folder must have a {}.",
                   tokenizer_file);
  return build(read_json_file(path), path.string(), std::move(config), config_path.string());
}

Tokenizer Tokenizer::from_json(std::string_view tokenizer_json, std::string_view config_json) {
  TokenizerConfig config;
  if (!config_json.empty()) config = read_tokenizer_config(config_json, tokenizer_config_file);
  return build(parse_json(tokenizer_json, tokenizer_file), tokenizer_file, std::move(config), tokenizer_config_file);
}

Tokenizer Tokenizer::build(const Json& tokenizer_json, std::string_view origin, TokenizerConfig config, std::string_view config_origin) {
  const JsonObject json(tokenizer_json, std::string(origin));
  auto parts = std::make_unique<Parts>();
  if (const auto normalizer = json.object("normalizer")) parts->normalizer = make_normalizer(*normalizer);
  if (const auto pre = json.object("pre_tokenizer")) add_pre_tokenizers(*pre, parts->pre_tokenizers);
  if (const auto post = json.object("post_processor")) parts->frame = read_post_processor(*post);
  if (const auto decoder = json.object("decoder")) parts->decoder = make_decoder(*decoder);
  const auto model = json.object("model");
  if (!model) json.fail_key("model", "an object");
  parts->model = std::make_unique<Bpe>(*model, parts->pre_tokenizers.byte_level);

  const auto add = [&](const AddedToken& token, std::string_view where) {
    if (token.content.empty()) return;
    check_against_model(token, parts->model->vocabulary(), where);
    parts->added.add(token.content, token.id, where);
    parts->added_by_id[token.id] = token;
  };
  for (const AddedToken& token : read_added_tokens(json)) add(token, origin);
  for (const AddedToken& token : config.added_tokens) add(token, config_origin);

  // By id, so that which of two equal patterns wins does not depend on hashing.
  for (const auto& [id, token] : std::map<TokenId, AddedToken>(parts->added_by_id.begin(), parts->added_by_id.end())) {
    if (!token.normalized || !parts->normalizer) {
      (token.normalized ? parts->normalized_finder : parts->raw_finder).add(token, token.content);
      continue;
    }
    AlignedText content(token.content, 0, false);
    parts->normalizer->apply(content);
    parts->normalized_finder.add(token, content.text());
    parts->normalized_content[id] = std::string(content.text());
  }

  const auto id_of = [&](const std::optional<std::string>& token) {
    if (!token) return std::optional<TokenId>();
    const auto id = parts->added.find(*token);
    return id ? id : parts->model->vocabulary().find(*token);
  };
  apply_bos_and_eos(config, id_of(config.bos_token), id_of(config.eos_token), parts->frame);
  for (const auto& side : {parts->frame.before, parts->frame.after}) {
    for (const TokenId id : side) {
      check<DataError>(parts->added.token(id) != nullptr || parts->model->vocabulary().token(id) != nullptr, origin,
                       "The post-processor puts the id {} around texts, which no token has.", id);
    }
  }
  parts->config = std::move(config);
  return Tokenizer(std::move(parts));
}

}  // namespace nibble::text
