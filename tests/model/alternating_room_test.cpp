#include "nibble/model/alternating_room.h"

#include "tests/support/gpu_test.h"

namespace nibble::alternating_room_test {
namespace {

TEST(AlternatingRoom, GivesTheLargestOfBothGroupsOneBuffer) {
  gpu::Tensor wide, narrow, one, other, alone;
  AlternatingRoom room;
  room.add(AlternatingRoom::first, narrow, DType::f16, {100, 30});
  room.add(AlternatingRoom::first, wide, DType::f32, {100, 30});
  room.add(AlternatingRoom::second, alone, DType::f32, {5});
  room.add(AlternatingRoom::second, one, DType::f16, {3000, 2, 2, 1});
  room.add(AlternatingRoom::second, other, DType::f32, {7, 2, 3});
  const std::uint64_t before = test::device().memory().current;
  room.make(test::device(), "room");
  EXPECT_EQ(test::device().memory().current - before, room.bytes());
  EXPECT_EQ(room.bytes(), gpu::buffer_bytes(24000) + gpu::buffer_bytes(6000) + gpu::buffer_bytes(20));
  EXPECT_EQ(wide.buffer(), one.buffer());
  EXPECT_EQ(narrow.buffer(), other.buffer());
  for (const gpu::Tensor* tensor : {&wide, &narrow, &one, &other}) EXPECT_NE(tensor->buffer(), alone.buffer());
  EXPECT_NE(wide.buffer(), narrow.buffer());
  EXPECT_EQ(wide.shape_text().str(), "(100, 30)");
  EXPECT_EQ(one.shape_text().str(), "(3000, 2, 2, 1)");
  EXPECT_EQ(other.shape_text().str(), "(7, 2, 3)");
  EXPECT_EQ(one.dtype(), DType::f16);
  const auto values = test::random_values(wide.size(), 3, 1.0f);
  test::device().write(wide, std::as_bytes(std::span(values)));
  EXPECT_EQ(test::device().read<float>(wide), values);
}

TEST(AlternatingRoom, TakesNothingOfNothing) {
  AlternatingRoom room;
  EXPECT_EQ(room.bytes(), 0u);
  room.make(test::device(), "room");
}

}  // namespace
}  // namespace nibble::alternating_room_test
