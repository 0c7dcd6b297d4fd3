#include "nibble/quant/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

namespace nibble::parallel_test {
namespace {

TEST(ParallelRanges, CoversEachIndexOnce) {
  for (const std::size_t count : {0, 1, 2, 7, 100}) {
    for (const unsigned threads : {0u, 1u, 3u, 8u}) {
      std::vector<std::atomic<int>> hits(count);
      parallel_ranges(count, 2, threads, [&](std::size_t begin, std::size_t end) {
        EXPECT_LT(begin, end);
        for (std::size_t i = begin; i < end; ++i) ++hits[i];
      });
      for (const auto& hit : hits) EXPECT_EQ(hit, 1);
    }
  }
}

TEST(ParallelRanges, KeepsRangesAboveTheLeastLength) {
  std::atomic<int> calls = 0;
  parallel_ranges(10, 6, 8, [&](std::size_t, std::size_t) { ++calls; });
  EXPECT_EQ(calls, 1);
}

TEST(ParallelRanges, ThrowsTheErrorOfTheFirstRange) {
  std::atomic<int> calls = 0;
  const auto work = [&](std::size_t begin, std::size_t) {
    ++calls;
    if (begin > 0) throw std::runtime_error(std::to_string(begin));
  };
  try {
    parallel_ranges(40, 1, 4, work);
    FAIL();
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "10");
  }
  EXPECT_EQ(calls, 4);
}

}  // namespace
}  // namespace nibble::parallel_test
