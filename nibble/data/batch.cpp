#include "nibble/data/batch.h"

#include <algorithm>
#include <limits>

#include "nibble/base/error.h"

namespace nibble::data {
namespace {

constexpr std::string_view in_batch = "make_batch";

struct TokenRange {
  std::uint32_t begin, end;  // within the example
};

void append_segment(Batch& batch, const Example& example, TokenRange range, std::uint32_t index) {
  const auto begin = static_cast<std::uint32_t>(batch.tokens.size());
  for (std::uint32_t i = range.begin; i < range.end; ++i) {
    check<DataError>(example.tokens[i] >= 0, in_batch, "Example {} has the token {}, which is negative.", index,
                     example.tokens[i]);
    const auto token = static_cast<std::uint32_t>(example.tokens[i]);
    const std::uint32_t offset = i - range.begin;
    batch.tokens.push_back(token);
    batch.position.push_back(offset);
    batch.segment_begin.push_back(begin);
    batch.segment_end.push_back(begin + range.end - range.begin);
    if (offset == 0 || example.trained[i] == 0) continue;
    batch.label_rows.push_back(begin + offset - 1);
    batch.labels.push_back(token);
    batch.row_of_label.push_back(index);
  }
}

void append_side(Batch& batch, const Example& example, TokenRange range, std::uint32_t index) {
  if (batch.sides.empty()) batch.sides.push_back(0);
  append_segment(batch, example, range, index);
  const auto end = static_cast<std::uint32_t>(batch.labels.size());
  check<DataError>(end > batch.sides.back(), in_batch, "Example {} is a preference with an answer that has no label.", index);
  batch.sides.push_back(end);
}

void append(Batch& batch, const Example& example, std::uint32_t index) {
  check<UsageError>(example.tokens.size() == example.trained.size(), in_batch, "Example {} has {} tokens but {} marks.",
                    index, example.tokens.size(), example.trained.size());
  check<DataError>(!example.tokens.empty(), in_batch, "Example {} has no tokens.", index);
  const std::size_t end = batch.tokens.size() + example.tokens.size();
  check<UsageError>(end <= std::numeric_limits<std::uint32_t>::max(), in_batch,
                    "The batch has {} tokens, at most 2^32 - 1.", end);
  const auto length = static_cast<std::uint32_t>(example.tokens.size());
  check<UsageError>(example.rejected_begin < length, in_batch, "The rejected side of example {} begins at {} of {} tokens.",
                    index, example.rejected_begin, length);
  if (!example.is_pair()) {
    append_segment(batch, example, {0, length}, index);
    return;
  }
  append_side(batch, example, {0, example.rejected_begin}, index);
  append_side(batch, example, {example.rejected_begin, length}, index);
}

}  // namespace

Batch make_batch(std::span<const Example> examples, std::span<const std::uint64_t> rows) {
  check<UsageError>(rows.empty() || rows.size() == examples.size(), in_batch, "There are {} examples but {} row numbers.",
                    examples.size(), rows.size());
  const auto pairs = std::count_if(examples.begin(), examples.end(), [](const Example& e) { return e.is_pair(); });
  check<UsageError>(pairs == 0 || static_cast<std::size_t>(pairs) == examples.size(), in_batch,
                    "{} of {} examples are preferences; a batch has these alone or none.", pairs, examples.size());
  Batch batch;
  for (std::size_t i = 0; i < examples.size(); ++i) append(batch, examples[i], static_cast<std::uint32_t>(i));
  batch.rows.assign(rows.begin(), rows.end());
  batch.rows.resize(examples.size(), 0);
  return batch;
}

}  // namespace nibble::data
