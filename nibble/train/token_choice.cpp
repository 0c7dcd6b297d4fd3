#include "nibble/train/token_choice.h"

#include "nibble/base/error.h"
#include "nibble/text/utf8.h"

#include <algorithm>
#include <charconv>

namespace nibble {
namespace {

constexpr std::string_view token_option = "--train-tokens";
constexpr std::size_t longest_token = 1024;  // bytes

std::optional<std::uint64_t> whole_number(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return {};
  return value;
}

void check_token(const std::string& text) {
  check<UsageError>(!text.empty() && text.size() <= longest_token, token_option, "A token has {} bytes; give 1 to {}.", text.size(), longest_token);
  check<UsageError>(text::replace_broken_utf8(text) == text, token_option, "The token \"{}\" is not valid UTF-8.", text::replace_broken_utf8(text));
}

text::Tokenizer tokenizer_of(const text::TokenizerFiles& files) {
  const auto config = files.find("tokenizer_config.json");
  return text::Tokenizer::from_json(files.at("tokenizer.json"), config == files.end() ? "" : config->second);
}

}  // namespace

TokenChoice choose_tokens(const std::vector<std::string>& texts, const text::Tokenizer& tokenizer, std::uint32_t rows, bool plain) {
  TokenChoice choice{.known = tokenizer.id_end()};
  std::uint32_t next = choice.known;
  for (const std::string& text : texts) {
    check_token(text);
    std::optional<std::uint32_t> id = tokenizer.token_to_id(text);
    if (const auto number = whole_number(text)) {
      check<UsageError>(*number < rows, token_option, "The token {} is beyond the model's table of {} rows.", *number, rows);
      id = static_cast<std::uint32_t>(*number);
    }
    if (!id) {
      const auto same = std::find_if(choice.added.begin(), choice.added.end(), [&](const text::NewToken& token) { return token.content == text; });
      id = same == choice.added.end() ? next : same->id;
    }
    check<UsageError>(std::find(choice.ids.begin(), choice.ids.end(), *id) == choice.ids.end(), token_option, "The token {} ({}) comes twice.", text, *id);
    check<UsageError>(*id < rows, token_option,
                      "The token \"{}\" is new, and the model's table of {} rows has none left: the tokenizer has used {}. Name a token that it "
                      "reserves, or enlarge the model first with transformers' resize_token_embeddings.",
                      text, rows, next);
    choice.ids.push_back(*id);
    if (*id != next || whole_number(text)) continue;
    choice.added.push_back({.content = text, .id = next++, .special = !plain});
  }
  return choice;
}

RunData open_tokenizer(const TrainOptions& options) {
  const std::filesystem::path folder = text::tokenizer_folder(options.model, options.init_adapter);
  const std::uint32_t rows = read_model_config(options.model).vocab_size;
  auto chat_template = text::ChatTemplate::load(folder);
  if (!chat_template) chat_template = text::ChatTemplate::load(options.model);
  RunData data{.tokenizer = text::Tokenizer::load(folder), .chat_template = std::move(chat_template)};
  if (folder != options.model) {
    check<DataError>(data.tokenizer.id_end() <= rows, (folder / "tokenizer.json").string(),
                     "The adapter's tokenizer has ids up to {}; the model's table has {} rows. Enlarge the model first with transformers' "
                     "resize_token_embeddings.",
                     data.tokenizer.id_end() - 1, rows);
  }
  if (options.train_tokens.empty()) return data;
  data.tokens = choose_tokens(options.train_tokens, data.tokenizer, rows, options.plain_tokens);
  if (data.tokens.added.empty()) return data;
  data.tokenizer_files = text::read_tokenizer_files(folder);
  text::add_tokens(data.tokenizer_files, data.tokens.added);
  data.tokenizer = tokenizer_of(data.tokenizer_files);
  return data;
}

}  // namespace nibble
