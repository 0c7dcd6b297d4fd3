#include "nibble/base/rng.h"

#include <gtest/gtest.h>

#include <vector>

namespace nibble::rng_test {
namespace {

// Known answers of the authors' Random123 library (kat_vectors, philox4x32 10 rounds).
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (std::array<std::uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Rng, StreamsDifferAndRepeat) {
  Rng a(7, 1), b(7, 1), c(7, 2);
  const auto first = a.next_u32();
  EXPECT_EQ(first, b.next_u32());
  EXPECT_NE(first, c.next_u32());
}

TEST(Rng, BelowStaysBelowAndReachesAll) {
  Rng rng(3);
  std::vector<int> seen(5);
  for (int i = 0; i < 200; ++i) ++seen.at(rng.below(5));
  for (const int count : seen) EXPECT_GT(count, 10);
}

}  // namespace
}  // namespace nibble::rng_test
