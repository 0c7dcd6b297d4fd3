#include "nibble/data/batch.h"

#include <gtest/gtest.h>

#include "nibble/base/error.h"

namespace nibble::data::batch_test {
namespace {

TEST(Batch, JoinsExamplesWithoutPadding) {
  const Example examples[] = {{.tokens = {5, 6, 7}, .trained = {1, 0, 1}}, {.tokens = {8, 9}, .trained = {0, 1}}};
  const std::uint64_t rows[] = {41, 7};
  const Batch batch = make_batch(examples, rows);
  using U = std::vector<std::uint32_t>;
  EXPECT_EQ(batch.tokens, (U{5, 6, 7, 8, 9}));
  EXPECT_EQ(batch.position, (U{0, 1, 2, 0, 1}));
  EXPECT_EQ(batch.segment_begin, (U{0, 0, 0, 3, 3}));
  EXPECT_EQ(batch.segment_end, (U{3, 3, 3, 5, 5}));
  // The first token of a segment has nothing before it, so its mark counts for nothing.
  EXPECT_EQ(batch.label_rows, (U{1, 3}));
  EXPECT_EQ(batch.labels, (U{7, 9}));
  EXPECT_EQ(batch.row_of_label, (U{0, 1}));
  EXPECT_EQ(batch.rows, (std::vector<std::uint64_t>{41, 7}));
}

TEST(Batch, RowsMayBeUnknown) {
  const Example examples[] = {{.tokens = {1, 2}, .trained = {0, 1}}};
  EXPECT_EQ(make_batch(examples).rows, std::vector<std::uint64_t>{0});
}

TEST(Batch, RefusesWhatIsNoExample) {
  const Example empty[] = {{}};
  const Example uneven[] = {{.tokens = {1, 2}, .trained = {1}}};
  const Example negative[] = {{.tokens = {1, -2}, .trained = {0, 1}}};
  const Example good[] = {{.tokens = {1, 2}, .trained = {0, 1}}};
  const std::uint64_t rows[] = {1, 2};
  EXPECT_THROW(make_batch(empty), DataError);
  EXPECT_THROW(make_batch(uneven), UsageError);
  EXPECT_THROW(make_batch(negative), DataError);
  EXPECT_THROW(make_batch(good, rows), UsageError);
}

}  // namespace
}  // namespace nibble::data::batch_test
