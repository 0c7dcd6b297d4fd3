#include "nibble/gpu/host_memory.h"

#include "nibble/base/error.h"
#include "tests/gpu/scale.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

namespace nibble::gpu::host_memory_test {
namespace {

// Of every kind that the adapter has; `direct` and `carried` memory is read by kernels.
TEST(HostBuffer, IsCopiedFromAndRead) {
  Device device;
  std::vector<float> values(1000);
  std::iota(values.begin(), values.end(), 0.0f);
  for (const HostMemory memory : {HostMemory::staged, HostMemory::mapped, HostMemory::direct, HostMemory::carried}) {
    EXPECT_EQ(host_memory_named(name_of(memory)), memory);
    if (!supports(device.info(), memory)) {
      EXPECT_NE(device.info().type, AdapterType::software) << "it has all kinds";
      continue;
    }
    const std::uint64_t on_host = device.memory().host, on_device = device.memory().current;
    {
      HostBuffer buffer(device, memory, 4000, "host");
      buffer.write(std::as_bytes(std::span(values)).first(400), 0);
      buffer.write(std::as_bytes(std::span(values)).subspan(400), 400);
      EXPECT_THROW(buffer.write(std::as_bytes(std::span(values)).first(8), 3996), Error);
      buffer.seal();
      EXPECT_THROW(buffer.write(std::as_bytes(std::span(values)).first(4), 0), Error);
      EXPECT_EQ(device.memory().host - on_host, host_buffer_bytes(device.info(), memory, 4000));
      EXPECT_EQ(device.memory().current, on_device);
      EXPECT_EQ(device.read<float>(buffer.tensor()), values);
      const Tensor x(buffer.tensor().buffer(), 0, DType::f32, {1000}), y = device.tensor(DType::f32, {1000}, "y");
      Recorder recorder(device);
      if (memory == HostMemory::staged || memory == HostMemory::mapped) {
        EXPECT_THROW(scale(recorder, x, y, 2.0f), Error);
        recorder.copy(x, y);
      } else {
        scale(recorder, x, y, 1.0f);
      }
      recorder.submit();
      EXPECT_EQ(device.read<float>(y), values);
    }
    EXPECT_EQ(device.memory().host, on_host);
  }
  EXPECT_FALSE(host_memory_named("pinned").has_value());
}

// Each copy gets what the memory held when it was submitted, and what it holds stays while it is opened.
TEST(HostBuffer, IsFilledAgainOnceTheDeviceIsDoneWithIt) {
  Device device;
  for (const HostMemory memory : {HostMemory::staged, HostMemory::mapped, HostMemory::direct, HostMemory::carried}) {
    if (!supports(device.info(), memory)) continue;
    HostBuffer buffer(device, memory, 4 << 20, "host");
    std::vector<Tensor> copies;
    for (std::uint32_t round = 0; round < 5; ++round) {
      if (round == 0) {
        EXPECT_TRUE(buffer.is_open());
      } else {
        EXPECT_THROW(buffer.bytes(), Error);
        buffer.reopen();
        EXPECT_THROW(buffer.reopen(), Error);
        buffer.wait_until_open("test");
        EXPECT_TRUE(buffer.is_open());
        std::uint32_t held = 0;
        std::memcpy(&held, buffer.bytes().data() + 4, 4);
        EXPECT_EQ(held, round - 1) << name_of(memory);
      }
      const std::vector<std::uint32_t> words(1 << 20, round);
      std::memcpy(buffer.bytes().data(), words.data(), 4 << 20);
      buffer.seal();
      copies.push_back(device.tensor(DType::u32, {1 << 20}, "copy"));
      Recorder recorder(device);
      recorder.copy(buffer.tensor(), copies.back());
      recorder.submit();
    }
    for (std::uint32_t round = 0; round < copies.size(); ++round) {
      EXPECT_EQ(device.read<std::uint32_t>(copies[round]), std::vector<std::uint32_t>(1 << 20, round)) << name_of(memory);
    }
    EXPECT_THROW(buffer.wait_until_open("test"), Error);
    buffer.reopen();
    device.wait("test");
    EXPECT_TRUE(buffer.is_open());
  }
}

TEST(HostBuffer, RefusesWhatTheAdapterCannotHold) {
  Device device;
  EXPECT_THROW(HostBuffer(device, HostMemory::staged, device.info().limits.max_buffer + 4, "host"), UsageError);
  AdapterInfo info = device.info();
  info.limits.host_pointer_alignment = 0;
  info.maps_card_memory = true;
  EXPECT_FALSE(supports(info, HostMemory::mapped));
  EXPECT_TRUE(supports(info, HostMemory::staged));
  EXPECT_EQ(usual_host_memory(info), HostMemory::staged);
  info.limits.host_pointer_alignment = 4096;
  EXPECT_EQ(usual_host_memory(info), HostMemory::carried);
  info.maps_card_memory = false;
  EXPECT_EQ(usual_host_memory(info), HostMemory::staged);
}

}  // namespace
}  // namespace nibble::gpu::host_memory_test
