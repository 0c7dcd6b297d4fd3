#include "nibble/data/batch.h"

#include <limits>

#include "nibble/base/error.h"

namespace nibble::data {
namespace {

constexpr std::string_view where = "make_batch";

void append(Batch& batch, const Example& example, std::uint32_t index) {
  check<UsageError>(example.tokens.size() == example.trained.size(), where, "Example {} has {} tokens but {} marks.",
                    index, example.tokens.size(), example.trained.size());
  check<DataError>(!example.tokens.empty(), where, "Example {} has no tokens.", index);
  const std::size_t end = batch.tokens.size() + example.tokens.size();
  check<UsageError>(end <= std::numeric_limits<std::uint32_t>::max(), where,
                    "The batch has {} tokens, at most 2^32 - 1.", end);
  const auto begin = static_cast<std::uint32_t>(batch.tokens.size());
  for (std::size_t i = 0; i < example.tokens.size(); ++i) {
    check<DataError>(example.tokens[i] >= 0, where, "Example {} has the token {}, which is negative.", index,
                     example.tokens[i]);
    const auto token = static_cast<std::uint32_t>(example.tokens[i]);
    const auto offset = static_cast<std::uint32_t>(i);
    batch.tokens.push_back(token);
    batch.position.push_back(offset);
    batch.segment_begin.push_back(begin);
    batch.segment_end.push_back(static_cast<std::uint32_t>(end));
    if (i == 0 || example.trained[i] == 0) continue;
    batch.label_rows.push_back(begin + offset - 1);
    batch.labels.push_back(token);
    batch.row_of_label.push_back(index);
  }
}

}  // namespace

Batch make_batch(std::span<const Example> examples, std::span<const std::uint64_t> rows) {
  check<UsageError>(rows.empty() || rows.size() == examples.size(), where, "There are {} examples but {} row numbers.",
                    examples.size(), rows.size());
  Batch batch;
  for (std::size_t i = 0; i < examples.size(); ++i) append(batch, examples[i], static_cast<std::uint32_t>(i));
  batch.rows.assign(rows.begin(), rows.end());
  batch.rows.resize(examples.size(), 0);
  return batch;
}

}  // namespace nibble::data
