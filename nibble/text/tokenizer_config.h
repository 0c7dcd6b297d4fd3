#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/text/added_tokens.h"

namespace nibble::text {

// What a tokenizer_config.json says about tokens. Its chat template is read elsewhere.
struct TokenizerConfig {
  std::optional<std::string> bos_token;
  std::optional<std::string> eos_token;
  std::optional<std::string> pad_token;
  std::optional<std::string> unk_token;
  std::optional<bool> add_bos_token;
  std::optional<bool> add_eos_token;
  std::vector<AddedToken> added_tokens;  // of "added_tokens_decoder"
};

// `origin` names the text in errors (DataError).
TokenizerConfig read_tokenizer_config(std::string_view json, std::string_view origin);
TokenizerConfig tokenizer_config_of(const Json& json, std::string_view origin);

}  // namespace nibble::text
