#include "nibble/train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace nibble::schedule_test {
namespace {

TEST(Schedule, ConstantAfterWarmUp) {
  const Schedule schedule{.kind = LrScheduler::constant, .learning_rate = 2.0, .warmup_steps = 4, .total_steps = 10};
  EXPECT_EQ(learning_rate(schedule, 0), 0.0);
  EXPECT_EQ(learning_rate(schedule, 1), 0.5);
  EXPECT_EQ(learning_rate(schedule, 4), 2.0);
  EXPECT_EQ(learning_rate(schedule, 9), 2.0);
}

// transformers: (total - step) / (total - warmup).
TEST(Schedule, Linear) {
  const Schedule schedule{.kind = LrScheduler::linear, .learning_rate = 1.0, .warmup_steps = 2, .total_steps = 10};
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 2), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 6), 4.0 / 8.0);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 9), 1.0 / 8.0);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 30), 0.0);
}

// transformers: 0.5 (1 + cos(pi progress)), and with a floor factor (1 - floor) + floor.
TEST(Schedule, CosineWithFloor) {
  Schedule schedule{.kind = LrScheduler::cosine, .learning_rate = 3.0, .total_steps = 8};
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 0), 3.0);
  EXPECT_NEAR(learning_rate(schedule, 2), 3.0 * 0.5 * (1 + std::sqrt(0.5)), 1e-12);
  EXPECT_NEAR(learning_rate(schedule, 4), 1.5, 1e-12);
  schedule.min_lr_ratio = 0.1;
  EXPECT_NEAR(learning_rate(schedule, 4), 3.0 * 0.55, 1e-12);
  EXPECT_NEAR(learning_rate(schedule, 8), 0.3, 1e-12);
}

TEST(Schedule, WarmUpLongerThanTheRun) {
  const Schedule schedule{.kind = LrScheduler::linear, .learning_rate = 1.0, .warmup_steps = 10, .total_steps = 4};
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 3), 0.3);
}

}  // namespace
}  // namespace nibble::schedule_test
