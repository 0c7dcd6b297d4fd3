#pragma once

#include "nibble/train/placement.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace nibble::test {

// Placements by `of_memory` from as much as `all` takes down to the least: never above what there is, and with less never faster.
template <typename OfMemory>
void expect_never_faster_with_less(const Placement& all, std::uint64_t least, const OfMemory& of_memory) {
  const std::uint64_t whole = all.memory.total();
  EXPECT_EQ(of_memory(whole).extra_seconds, all.extra_seconds);
  double extra = all.extra_seconds;
  for (int part = 1; part <= 10; ++part) {
    const std::uint64_t memory = whole - (whole - least) / 10 * part;
    const Placement placement = of_memory(memory);
    EXPECT_LE(placement.memory.total(), memory);
    EXPECT_GE(placement.extra_seconds, extra);
    extra = placement.extra_seconds;
  }
  EXPECT_EQ(of_memory(least).memory.total(), least);
}

}  // namespace nibble::test
