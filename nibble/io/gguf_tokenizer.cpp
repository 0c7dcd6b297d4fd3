#include "nibble/io/gguf_tokenizer.h"

#include <algorithm>
#include <array>

#include "nibble/base/error.h"
#include "nibble/io/gguf_pre.h"

namespace nibble {
namespace {

constexpr const char* tokens_key = "tokenizer.ggml.tokens";
constexpr const char* template_key = "tokenizer.chat_template";
constexpr std::uint64_t max_template_bytes = std::uint64_t{4} << 20;
constexpr std::int64_t max_id = (1 << 24) - 1;

// Names of config, and keys of ids.
constexpr std::array<std::pair<const char*, const char*>, 4> named_tokens{
    {{"bos_token", "tokenizer.ggml.bos_token_id"},
     {"eos_token", "tokenizer.ggml.eos_token_id"},
     {"pad_token", "tokenizer.ggml.padding_token_id"},
     {"unk_token", "tokenizer.ggml.unknown_token_id"}}};

const Json& list(const JsonObject& metadata, const char* key) {
  if (!metadata.has(key) || !metadata.json()[key].is_array() || metadata.json()[key].empty())
    metadata.fail_key(key, "a list");
  return metadata.json()[key];
}

// All "gpt2" files of before the key existed leave it out.
std::string pre_name(const JsonObject& metadata) { return metadata.string("tokenizer.ggml.pre", "default"); }

const GgufPre& pre_of(const JsonObject& metadata) {
  const std::string model = metadata.string("tokenizer.ggml.model");
  check<DataError>(model == "gpt2", metadata.origin(),
                   "The file's tokenizer is of the model \"{}\"; \"gpt2\" (byte-level BPE) is read. Put the model's "
                   "tokenizer.json beside the file.",
                   model);
  const GgufPre* pre = gguf_pre(pre_name(metadata));
  check<DataError>(pre != nullptr, metadata.origin(),
                   "The file's tokenizer cuts words as \"{}\" (tokenizer.ggml.pre) does; {} are known. Put the model's "
                   "tokenizer.json beside the file.",
                   pre_name(metadata), gguf_pre_names());
  return *pre;
}

std::vector<std::int64_t> token_types(const JsonObject& metadata, std::size_t count) {
  constexpr const char* key = "tokenizer.ggml.token_type";
  if (!metadata.has(key)) return std::vector<std::int64_t>(count, gguf_token::normal);
  auto types = metadata.integers(key, {0, 6});
  check<DataError>(types.size() == count, metadata.origin(), "The key \"{}\" has {} values for {} tokens.", key,
                   types.size(), count);
  return types;
}

struct Vocabulary {
  Json words = Json::object(), added = Json::array();
};

Vocabulary vocabulary_of(const JsonObject& metadata) {
  const Json& tokens = list(metadata, tokens_key);
  check<DataError>(tokens.size() <= static_cast<std::size_t>(max_id), metadata.origin(),
                   "The file has {} tokens; at most {} are read.", tokens.size(), max_id);
  const auto types = token_types(metadata, tokens.size());
  Vocabulary result;
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    if (!tokens[id].is_string()) metadata.fail_key(tokens_key, "a list of strings only");
    const auto& token = tokens[id].get_ref<const std::string&>();
    if (types[id] == gguf_token::unused) continue;
    if (types[id] == gguf_token::control || types[id] == gguf_token::user_defined) {
      result.added.push_back({{"id", id},
                              {"content", token},
                              {"single_word", false},
                              {"lstrip", false},
                              {"rstrip", false},
                              {"normalized", false},
                              {"special", types[id] == gguf_token::control}});
      continue;
    }
    check<DataError>(!result.words.contains(token), metadata.origin(), "The token \"{}\" comes twice in \"{}\".", token,
                     tokens_key);
    result.words[token] = id;
  }
  return result;
}

Json chat_templates(const JsonObject& metadata) {
  Json templates = Json::array();
  for (const std::string& name : metadata.strings("tokenizer.chat_templates")) {
    templates.push_back({{"name", name}, {"template", metadata.string(fmt::format("{}.{}", template_key, name))}});
  }
  if (!metadata.has(template_key)) return templates.empty() ? Json() : templates;
  const std::string own = metadata.string(template_key);
  if (templates.empty()) return own;
  templates.push_back({{"name", "default"}, {"template", own}});
  return templates;
}

std::optional<Json> read_if_there(const fs::path& path) {
  if (!path_exists(path)) return std::nullopt;
  return read_json_file(path);
}

// Whether hf_tokenizer can make one of it.
bool has_known_tokenizer(const GgufFile& file) {
  const JsonObject metadata(file.metadata(), file.path().string());
  return metadata.string("tokenizer.ggml.model", "") == "gpt2" && gguf_pre(pre_name(metadata)) != nullptr;
}

}  // namespace

Json hf_tokenizer_config(const GgufFile& file) {
  const JsonObject metadata(file.metadata(), file.path().string());
  Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"}};
  const Json tokens = metadata.has(tokens_key) ? list(metadata, tokens_key) : Json::array();
  for (const auto& [name, key] : named_tokens) {
    if (!metadata.has(key) || tokens.empty()) continue;
    const auto& token =
        tokens[static_cast<std::size_t>(metadata.integer(key, {0, static_cast<std::int64_t>(tokens.size()) - 1}))];
    if (!token.is_string()) metadata.fail_key(tokens_key, "a list of strings only");
    config[name] = token;
  }
  const GgufPre* pre = gguf_pre(pre_name(metadata));
  config["add_bos_token"] = metadata.boolean("tokenizer.ggml.add_bos_token", pre != nullptr && pre->adds_bos);
  config["add_eos_token"] = metadata.boolean("tokenizer.ggml.add_eos_token", false);
  if (Json templates = chat_templates(metadata); !templates.is_null()) config["chat_template"] = std::move(templates);
  return config;
}

HfTokenizer hf_tokenizer(const GgufFile& file) {
  const JsonObject metadata(file.metadata(), file.path().string());
  const GgufPre& pre = pre_of(metadata);
  Vocabulary vocabulary = vocabulary_of(metadata);
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
  Json model = {{"type", "BPE"},
                {"dropout", nullptr},
                {"unk_token", nullptr},
                {"fuse_unk", false},
                {"byte_fallback", false},
                {"ignore_merges", pre.ignore_merges},
                {"vocab", std::move(vocabulary.words)},
                {"merges", list(metadata, "tokenizer.ggml.merges")}};
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) model[key] = nullptr;
  Json tokenizer = {{"version", "1.0"},
                    {"truncation", nullptr},
                    {"padding", nullptr},
                    {"added_tokens", std::move(vocabulary.added)},
                    {"normalizer", pre.normalizes ? Json{{"type", "NFC"}} : Json()},
                    {"pre_tokenizer", pre.pre_tokenizer()},
                    {"post_processor", byte_level},
                    {"decoder", byte_level},
                    {"model", std::move(model)}};
  return {.tokenizer = std::move(tokenizer), .config = hf_tokenizer_config(file)};
}

HfTokenizer read_hf_tokenizer(const fs::path& model) {
  fs::path folder = model;
  if (is_gguf(model)) {
    const GgufFile file(model);
    folder = file.path().parent_path();
    if (has_known_tokenizer(file) || !path_exists(folder / "tokenizer.json")) return hf_tokenizer(file);
  }
  HfTokenizer files{.tokenizer = read_json_file(folder / "tokenizer.json"),
                    .config = read_if_there(folder / "tokenizer_config.json").value_or(Json::object())};
  const fs::path own = folder / "chat_template.jinja";
  if (path_exists(own)) files.config["chat_template"] = read_file(own, max_template_bytes);
  return files;
}

}  // namespace nibble
