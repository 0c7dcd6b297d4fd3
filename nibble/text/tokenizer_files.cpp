#include "nibble/text/tokenizer_files.h"

#include <array>

#include "nibble/base/error.h"
#include "nibble/io/atomic.h"
#include "nibble/io/gguf_tokenizer.h"

namespace nibble::text {
namespace {

constexpr std::array files_beside{"chat_template.jinja", "chat_template.json", "special_tokens_map.json"};
constexpr const char* templates_folder = "additional_chat_templates";
constexpr std::uint64_t most_bytes = std::uint64_t{256} << 20;

void read_if_there(const fs::path& folder, const std::string& name, TokenizerFiles& files) {
  if (path_exists(folder / name)) files[name] = read_file(folder / name, most_bytes);
}

Json entry_of(const NewToken& token) {
  return {{"content", token.content}, {"lstrip", false}, {"normalized", !token.special}, {"rstrip", false}, {"single_word", false}, {"special", token.special}};
}

}  // namespace

bool has_tokenizer(const fs::path& folder) { return path_exists(folder / tokenizer_file); }

fs::path tokenizer_folder(const fs::path& model, const fs::path& adapter) { return !adapter.empty() && has_tokenizer(adapter) ? adapter : model; }

TokenizerFiles read_tokenizer_files(const fs::path& model) {
  if (is_gguf(model)) {
    const HfTokenizer made = read_hf_tokenizer(model);
    return {{tokenizer_file, write_json(made.tokenizer) + "\n"}, {tokenizer_config_file, write_json(made.config) + "\n"}};
  }
  TokenizerFiles files{{tokenizer_file, read_file(model / tokenizer_file, most_bytes)}};
  read_if_there(model, tokenizer_config_file, files);
  for (const char* name : files_beside) read_if_there(model, name, files);
  std::error_code error;
  for (fs::directory_iterator it(model / templates_folder, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() == ".jinja") read_if_there(model, fmt::format("{}/{}", templates_folder, it->path().filename().string()), files);
  }
  return files;
}

void write_tokenizer_files(const fs::path& folder, const TokenizerFiles& files) {
  for (const auto& [name, text] : files) {
    std::error_code error;
    fs::create_directories((folder / name).parent_path(), error);
    write_file_atomically(folder / name, text);
  }
}

void add_tokens(TokenizerFiles& files, std::span<const NewToken> tokens) {
  Json json = parse_json(files.at(tokenizer_file), tokenizer_file);
  Json config = files.contains(tokenizer_config_file) ? parse_json(files[tokenizer_config_file], tokenizer_config_file) : Json::object();
  check<DataError>(json.is_object() && config.is_object(), tokenizer_file, "Both {} and {} must hold an object.",
                   tokenizer_file, tokenizer_config_file);
  Json& added = json["added_tokens"];
  if (!added.is_array()) added = Json::array();
  Json* decoder = config.contains("added_tokens_decoder") && config["added_tokens_decoder"].is_object() ? &config["added_tokens_decoder"] : nullptr;
  for (const NewToken& token : tokens) {
    Json entry = entry_of(token);
    if (decoder) (*decoder)[std::to_string(token.id)] = entry;
    entry["id"] = token.id;
    added.push_back(std::move(entry));
  }
  files[tokenizer_file] = write_json(json) + "\n";
  files[tokenizer_config_file] = write_json(config) + "\n";
}

}  // namespace nibble::text
