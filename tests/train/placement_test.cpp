#include "nibble/train/placement.h"

#include "nibble/weights/shapes.h"
#include "tests/support/gpu_test.h"

namespace nibble {
namespace {

constexpr BatchRoom room{.tokens = 2048, .labels = 2048};

Placement of_memory(std::uint64_t memory, const TrainOptions& options) {
  return place(options, test::device(), shape_by_name("qwen3-4b"), ProductPath::f32, room, memory);
}

std::uint64_t bytes(const Placement& placement, const TrainOptions& options) {
  return plan_memory(test::device(), shape_by_name("qwen3-4b"), placement.model, options.lora, placement.head).total();
}

// A memory whose nine tenths hold this plan just so.
std::uint64_t just_enough(std::uint64_t plan) { return (plan + 8) / 9 * 10; }

TEST(Placement, GivesUpOnlyWhatItMust) {
  TrainOptions options;
  options.train_head = true;
  const Placement all = of_memory(0, options);
  EXPECT_FALSE(all.model.gradient_checkpointing);
  EXPECT_EQ(all.head->place, MemoryPlace::device);
  const std::uint64_t whole = just_enough(bytes(all, options));
  EXPECT_FALSE(of_memory(whole, options).model.gradient_checkpointing);

  const Placement again = of_memory(whole - 10, options);
  EXPECT_TRUE(again.model.gradient_checkpointing);
  EXPECT_EQ(again.head->place, MemoryPlace::device);
  const std::uint64_t less = just_enough(bytes(again, options));
  ASSERT_LT(less, whole);
  EXPECT_EQ(of_memory(less, options).head->place, MemoryPlace::device);

  const Placement on_host = of_memory(less - 10, options);
  EXPECT_TRUE(on_host.model.gradient_checkpointing);
  EXPECT_EQ(on_host.head->place, MemoryPlace::host);
  EXPECT_LT(bytes(on_host, options), bytes(again, options));
}

TEST(Placement, WhatIsSaidHolds) {
  TrainOptions options;
  options.train_head = true;
  options.gradient_checkpointing = Checkpointing::off;
  options.head_state = MemoryPlace::device;
  const Placement small = of_memory(1, options);
  EXPECT_FALSE(small.model.gradient_checkpointing);
  EXPECT_EQ(small.head->place, MemoryPlace::device);
  options.gradient_checkpointing = Checkpointing::on;
  options.head_state = MemoryPlace::host;
  const Placement large = of_memory(std::uint64_t{1} << 50, options);
  EXPECT_TRUE(large.model.gradient_checkpointing);
  EXPECT_EQ(large.head->place, MemoryPlace::host);
}

TEST(Placement, WithoutATrainedHeadThereIsNone) { EXPECT_FALSE(of_memory(0, {}).head.has_value()); }

}  // namespace
}  // namespace nibble
