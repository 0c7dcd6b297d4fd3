#pragma once

#include "nibble/train/options.h"
#include "nibble/train/run_data.h"

namespace nibble {

// Which tokens these texts and ids name; unknown texts get the rows of the table, of `rows` in all, that the tokenizer leaves free.
// UsageError where an id is beyond it, a token comes twice, or no row is left.
TokenChoice choose_tokens(const std::vector<std::string>& texts, const text::Tokenizer& tokenizer, std::uint32_t rows, bool plain);

// Tokenizer, template and chosen tokens of a run, without its rows.
RunData open_tokenizer(const TrainOptions& options);

}  // namespace nibble
