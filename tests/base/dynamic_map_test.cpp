#include "nibble/base/dynamic_map.h"

#include <gtest/gtest.h>

#include <cmath>

namespace nibble::dynamic_map_test {
namespace {

// The signed map is held against bitsandbytes' own in tests/quant/double_quant_test.cpp.
TEST(DynamicMap, TheUnsignedOneHasSevenDecades) {
  const auto& map = unsigned_dynamic_map();
  EXPECT_EQ(map[0], 0.0f);
  EXPECT_EQ(map[255], 1.0f);
  // 2^(k+1) points in decade k, at the middles of equal parts of 0.1 to 1.
  std::size_t i = 1;
  for (int decade = 0; decade < 7; ++decade) {
    const int points = 2 << decade;
    for (int k = 0; k < points; ++k, ++i) {
      const double middle = 0.1 + 0.9 * (k + 0.5) / points;
      EXPECT_NEAR(map[i] / (middle * std::pow(10.0, decade - 6)), 1.0, 1e-6) << i;
      EXPECT_LT(map[i - 1], map[i]);
    }
  }
  EXPECT_EQ(i, 255u);
}

TEST(DynamicMap, TheNearestCodeIsNearest) {
  for (const auto* map : {&dynamic_map(), &unsigned_dynamic_map()}) {
    for (std::size_t i = 0; i < map->size(); ++i) EXPECT_EQ(nearest_code(*map, (*map)[i]), i);
    for (std::size_t i = 1; i < map->size(); ++i) {
      const double below = (*map)[i - 1], above = (*map)[i], part = above - below;
      EXPECT_EQ(nearest_code(*map, static_cast<float>(below + 0.49 * part)), i - 1);
      EXPECT_EQ(nearest_code(*map, static_cast<float>(below + 0.51 * part)), i);
    }
    EXPECT_EQ(nearest_code(*map, -2.0f), 0);
    EXPECT_EQ(nearest_code(*map, 2.0f), 255);
  }
}

}  // namespace
}  // namespace nibble::dynamic_map_test
