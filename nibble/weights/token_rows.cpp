#include "nibble/weights/token_rows.h"

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/weights/matrix_source.h"

namespace nibble {
namespace {

// Rows of a table for these tokens, in one pass over it.
std::vector<float> first_rows(const MatrixSource& table, std::span<const std::uint32_t> ids, const TokensToTrain& tokens) {
  const std::uint64_t columns = table.columns;
  const auto is_fresh = [&](std::uint32_t id) { return std::find(tokens.fresh.begin(), tokens.fresh.end(), id) != tokens.fresh.end(); };
  std::vector<float> rows(ids.size() * columns);
  std::vector<double> sums(columns);
  table.read([&](std::span<const float> values, std::uint64_t first) {
    const std::uint64_t counted = tokens.fresh.empty() ? 0 : std::clamp(tokens.known * columns, first, first + values.size()) - first;
    for (std::uint64_t i = 0, column = first % columns; i < counted; ++i, column = column + 1 == columns ? 0 : column + 1) sums[column] += values[i];
    for (std::size_t row = 0; row < ids.size(); ++row) {
      const std::uint64_t wanted = ids[row] * columns;
      const std::uint64_t begin = std::clamp(wanted, first, first + values.size()), end = std::clamp(wanted + columns, first, first + values.size());
      std::copy(values.begin() + static_cast<std::ptrdiff_t>(begin - first), values.begin() + static_cast<std::ptrdiff_t>(end - first),
                rows.begin() + static_cast<std::ptrdiff_t>(row * columns + begin - wanted));
    }
  });
  for (std::size_t row = 0; row < ids.size(); ++row) {
    for (std::uint64_t c = 0; is_fresh(ids[row]) && c < columns; ++c) rows[row * columns + c] = static_cast<float>(sums[c] / tokens.known);
  }
  return rows;
}

void add_rows(std::vector<std::uint32_t>& ids, std::vector<float>& rows, const Checkpoint& base, std::string_view table, const TokensToTrain& tokens) {
  std::vector<std::uint32_t> missing;
  for (const std::uint32_t id : tokens.ids) {
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) missing.push_back(id);
  }
  if (missing.empty()) return;
  const auto fresh = first_rows(source_of(base.at(table)), missing, tokens);
  ids.insert(ids.end(), missing.begin(), missing.end());
  rows.insert(rows.end(), fresh.begin(), fresh.end());
}

}  // namespace

void add_token_rows(LoraAdapter& adapter, const Checkpoint& base, const ModelConfig& config, const TokensToTrain& tokens) {
  check(tokens.fresh.empty() || tokens.known > 0, "token rows", "The tokenizer has no tokens, whose rows new ones could begin at the mean of.");
  add_rows(adapter.config.trained_tokens, adapter.token_rows, base, embedding_tensor_name, tokens);
  if (tokens.head && !config.tie_word_embeddings) add_rows(adapter.config.trained_head_tokens, adapter.head_rows, base, head_tensor_name, tokens);
}

}  // namespace nibble
