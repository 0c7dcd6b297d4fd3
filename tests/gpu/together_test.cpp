#include "nibble/gpu/together.h"

#include <gtest/gtest.h>

namespace nibble::gpu::together_test {
namespace {

TEST(TensorsTogether, LieTheSameDistanceApartWhereBindingsMayBegin) {
  Device device;
  const auto before = device.memory().current;
  const auto tensors = tensors_together(device, 5, DType::f16, {3, 7, 11}, "together");
  EXPECT_EQ(device.memory().current - before, together_bytes(device.info().limits, 5, 2 * 3 * 7 * 11));
  ASSERT_EQ(tensors.size(), 5u);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    EXPECT_EQ(tensors[i].buffer(), tensors[0].buffer());
    EXPECT_EQ(tensors[i].offset(), 512 * i);
    EXPECT_EQ(tensors[i].shape_text(), (ShapeText{{3, 7, 11}, 3}));
    EXPECT_EQ(tensors[i].dtype(), DType::f16);
  }
}

// Two of three fit into a binding, or into a buffer.
TEST(TensorsTogether, TakeAsManyBuffersAsBindingsAsk) {
  Device device;
  for (const Limits& limits : {Limits{.max_buffer = 1 << 20, .max_binding = 2500}, Limits{.max_buffer = 2500, .max_binding = 1 << 20}}) {
    const auto before = device.memory().current;
    const auto tensors = tensors_together(device, 3, DType::u32, {250}, "together", limits);
    EXPECT_EQ(tensors[1].buffer(), tensors[0].buffer());
    EXPECT_EQ(tensors[1].offset(), 1024u);
    EXPECT_NE(tensors[2].buffer(), tensors[0].buffer());
    EXPECT_EQ(tensors[2].offset(), 0u);
    EXPECT_EQ(device.memory().current - before, together_bytes(limits, 3, 1000));
  }
}

TEST(TensorsTogether, AreCountedByTheBuffer) {
  const Limits limits{.max_buffer = 4096, .max_binding = 1100};
  EXPECT_EQ(together_bytes(limits, 0, 300), 0u);
  EXPECT_EQ(together_bytes(limits, 2, 300), 1024u);
  EXPECT_EQ(together_bytes(limits, 5, 300), 2 * 1024u + 512);
  EXPECT_EQ(together_bytes(limits, 2, 2000), 2 * 2048u);  // none but by itself
}

}  // namespace
}  // namespace nibble::gpu::together_test
