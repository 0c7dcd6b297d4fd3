#include "nibble/base/error.h"
#include "nibble/gpu/disk_cache.h"
#include "nibble/gpu/readback.h"
#include "nibble/gpu/recorder.h"
#include "tests/gpu/scale.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>

namespace nibble::gpu::device_test {
namespace {

TEST(Device, RunsAKernelAndReadsBack) {
  Device device;
  std::vector<float> values(1000);
  std::iota(values.begin(), values.end(), 0.0f);
  const Tensor x = device.tensor<float>(DType::f32, {1000}, values, "x");
  const Tensor y = device.tensor(DType::f32, {1000}, "y");
  Recorder recorder(device);
  scale(recorder, x, y, 0.5f);
  recorder.submit();
  const auto result = device.read<float>(y);
  for (std::size_t i = 0; i < values.size(); ++i) ASSERT_EQ(result[i], 0.5f * values[i]);
}

TEST(Device, NewTensorsAreZeroAndCounted) {
  Device device;
  const auto before = device.memory().current;
  {
    const Tensor x = device.tensor(DType::f32, {3, 5}, "x");
    for (const float value : device.read<float>(x)) EXPECT_EQ(value, 0.0f);
    EXPECT_EQ(device.memory().current, before + 256);
  }
  EXPECT_EQ(device.memory().current, before);
  EXPECT_EQ(device.memory().peak, before + 256);
}

TEST(Device, OutlivedByItsTensors) {
  Tensor x;
  {
    Device device;
    x = device.tensor(DType::f32, {64}, "x");
  }
  EXPECT_EQ(x.size(), 64u);
}

TEST(Device, OddEndsAreWritten) {
  Device device;
  const std::vector<std::uint8_t> bytes = {1, 2, 3, 4, 5, 6, 7};
  const Tensor x = device.tensor<std::uint8_t>(DType::u8, {7}, bytes, "x");
  EXPECT_EQ(device.read<std::uint8_t>(x), bytes);
}

// 70,000 workgroups exceed one dimension of a grid; 18 million floats exceed 2^24, beyond which f32 cannot count.
TEST(Recorder, LargeGrids) {
  Device device;
  const std::uint32_t count = 18'000'000;
  const Tensor x = device.tensor(DType::f32, {count}, "x");
  const std::vector<float> last = {3.0f, 7.0f};
  device.write(x, std::as_bytes(std::span(last)), (count - 2) * 4ull);
  const Tensor y = device.tensor(DType::f32, {count}, "y");
  Recorder recorder(device);
  scale(recorder, x, y, 2.0f);
  recorder.submit();
  EXPECT_EQ(device.read<float>(y.part(count - 64, {64})).back(), 14.0f);
  EXPECT_EQ(device.read<float>(y.part(count - 64, {64}))[62], 6.0f);
}

TEST(Recorder, SlicesRespectBindings) {
  Device device;
  const auto limit = device.info().limits.max_binding;
  const std::uint64_t row = 4096;
  const auto rows = static_cast<std::uint32_t>(std::min<std::uint64_t>(limit / row * 5 / 2, 1u << 30));
  const auto slices = binding_slices(device, rows, {row, 4}, 32);
  EXPECT_GE(slices.size(), 3u);
  EXPECT_EQ(slices.front().begin, 0u);
  EXPECT_EQ(slices.back().end, rows);
  for (std::size_t i = 0; i < slices.size(); ++i) {
    if (i > 0) {
      EXPECT_EQ(slices[i].begin, slices[i - 1].end);
    }
    EXPECT_EQ(slices[i].begin % 32, 0u);
    EXPECT_EQ(slices[i].begin * 4ull % device.info().limits.storage_offset_alignment, 0u);
    EXPECT_LE((slices[i].end - slices[i].begin) * row, limit);
  }
  EXPECT_THROW(binding_slices(device, 2, {limit * 2}), Error);
}

TEST(Recorder, ManyDispatchesKeepTheirOrder) {
  Device device;
  const std::vector<float> one = {1.0f};
  const Tensor x = device.tensor<float>(DType::f32, {1}, one, "x");
  const Tensor y = device.tensor(DType::f32, {1}, "y");
  Recorder recorder(device);
  for (int i = 0; i < 600; ++i) {
    scale(recorder, x, y, i % 2 ? 2.0f : 0.5f);
    scale(recorder, y, x, 1.0f);
  }
  recorder.submit();
  EXPECT_EQ(device.read<float>(x)[0], 1.0f);
}

// Kernels that nobody has compiled before, each of the next one's input, with copies between them.
TEST(Recorder, WhatIsRecordedWhileKernelsAreCompiledKeepsItsOrder) {
  Device device({.cache_dir = std::filesystem::path()});
  const Tensor x = device.tensor(DType::f32, {64}, "x"), y = device.tensor(DType::f32, {64}, "y");
  Recorder recorder(device);
  float expected = 0;
  for (int i = 1; i <= 40; ++i) {
    const auto text = fmt::format("@group(0) @binding(1) var<storage, read> x: array<f32>;\n"
                                  "@group(0) @binding(2) var<storage, read_write> y: array<f32>;\n"
                                  "@compute @workgroup_size(64) fn main(@builtin(local_invocation_index) i: u32) "
                                  "{{ y[i] = 0.5 * x[i] + {}.0; }}\n", i);
    const Kernel kernel = device.kernel(text, "step", "main", [&] { return text; });
    recorder.dispatch_bytes(kernel, std::array{read(x), write(y)}, {}, Grid{}, {});
    recorder.copy(y, x);
    expected = 0.5f * expected + static_cast<float>(i);
  }
  EXPECT_EQ(device.pipelines_made(), 40u);
  recorder.submit();
  EXPECT_EQ(device.read<float>(x), std::vector<float>(64, expected));
}

// Held work sees what was written after it was recorded, with its own params, though others were submitted in between.
TEST(Recorder, HeldWorkIsDoneWhenItIsSubmitted) {
  Device device;
  const Tensor x = device.tensor(DType::f32, {1}, "x"), y = device.tensor(DType::f32, {1}, "y");
  const auto put = [&](float value) { device.write(x, std::as_bytes(std::span(&value, 1))); };
  Recorder held(device, Pace::held);
  scale(held, x, y, 2.0f);
  for (int i = 0; i < 400; ++i) scale(held, i % 2 ? x : y, i % 2 ? y : x, i % 2 ? 1.0f : 0.5f);
  held.encode();
  EXPECT_THROW(held.encode(), Error);
  {
    Recorder other(device);
    scale(other, x, y, 7.0f);
  }
  EXPECT_EQ(device.read<float>(y)[0], 0.0f);
  put(3.0f);
  EXPECT_EQ(device.read<float>(y)[0], 0.0f);
  held.submit();
  EXPECT_EQ(device.read<float>(y)[0], std::ldexp(6.0f, -200));
  // Nothing is left of it, and it serves again.
  put(5.0f);
  held.submit();
  EXPECT_EQ(device.read<float>(x)[0], 5.0f);
  scale(held, x, y, 3.0f);
  held.submit();
  EXPECT_EQ(device.read<float>(y)[0], 15.0f);
}

TEST(Recorder, HeldWorkIsForgottenWithItsRecorder) {
  Device device;
  const std::vector<float> one = {1.0f};
  const Tensor x = device.tensor<float>(DType::f32, {1}, one, "x"), y = device.tensor(DType::f32, {1}, "y");
  for (const bool encoded : {false, true}) {
    Recorder held(device, Pace::held);
    scale(held, x, y, 2.0f);
    if (encoded) held.encode();
  }
  EXPECT_EQ(device.read<float>(y)[0], 0.0f);
}

TEST(Readback, TakesWhatWasThereWhenItBegan) {
  Device device;
  const std::vector<float> one = {1.0f, 2.0f, 3.0f};
  const Tensor x = device.tensor<float>(DType::f32, {3}, one, "x");
  const Tensor y = device.tensor(DType::f32, {3}, "y");
  Readback first(device, 12), second(device, 12);
  Recorder recorder(device);
  scale(recorder, x, y, 2.0f);
  recorder.submit();
  first.begin(y);
  scale(recorder, x, y, 5.0f);
  recorder.submit();
  second.begin(y);
  std::vector<float> values(3);
  first.finish(std::as_writable_bytes(std::span(values)));
  EXPECT_EQ(values, (std::vector<float>{2, 4, 6}));
  second.finish(std::as_writable_bytes(std::span(values)), std::chrono::seconds(10));
  EXPECT_EQ(values, (std::vector<float>{5, 10, 15}));
  first.begin(x);
  EXPECT_THROW(first.begin(x), Error);
  first.finish(std::as_writable_bytes(std::span(values)));
  EXPECT_EQ(values, one);
  EXPECT_THROW(first.finish(std::as_writable_bytes(std::span(values))), Error);
  EXPECT_THROW(second.begin(device.tensor(DType::f32, {4}, "long")), Error);
}

// A tensor is bound to the end of its buffer, but not where another of the same buffer is bound beside it.
TEST(Recorder, TwoPartsOfOneBuffer) {
  Device device;
  const std::vector<float> values(128, 3.0f);
  const Tensor both = device.tensor<float>(DType::f32, {128}, values, "both");
  Recorder recorder(device);
  const Tensor other = device.tensor(DType::f32, {32}, "other");
  const Kernel kernel = device.kernel("scale within", "scale within", "main", [] {
    std::string text = scale_text;
    return text.replace(text.find("read>"), 5, "read_write>");
  });
  recorder.dispatch(kernel, {read_write(both.part(0, {64})), write(both.part(64, {64}))}, ScaleParams{64, 2.0f}, {1});
  recorder.dispatch(kernel, {read_write(both.part(64, {32})), write(other)}, ScaleParams{32, 2.0f}, {1});
  recorder.submit();
  EXPECT_EQ(device.read<float>(both.part(64, {64})).back(), 6.0f);
  EXPECT_EQ(device.read<float>(both.part(0, {64})).back(), 3.0f);
  EXPECT_EQ(device.read<float>(other).back(), 12.0f);
}

TEST(Errors, TextThatDoesNotCompileIsNamed) {
  Device device;
  const Tensor x = device.tensor(DType::f32, {4}, "x");
  const Kernel broken = device.kernel("broken", "broken kernel", "main", [] { return std::string("fn main() { oops }"); });
  Recorder recorder(device);
  try {
    recorder.dispatch(broken, {write(x)}, ScaleParams{}, {1});
    FAIL() << "the text compiled";
  } catch (const DeviceError& error) {
    EXPECT_NE(std::string(error.what()).find("broken kernel"), std::string::npos) << error.what();
  }
}

// WGSL that is right, but not for what is bound: the compiler says so later, on a thread of its own.
TEST(Errors, PipelinesThatAreRefusedAreNamed) {
  Device device;
  const Tensor x = device.tensor(DType::f32, {64}, "x");
  const std::string text = "@group(0) @binding(1) var<storage, read_write> x: array<f32>;\n"
                           "@compute @workgroup_size(64) fn main(@builtin(local_invocation_index) i: u32) { x[i] = 1.0; }\n";
  const Kernel kernel = device.kernel("refused", "refused", "main", [&] { return text; });
  Recorder recorder(device);
  const auto use = [&] {
    recorder.dispatch_bytes(kernel, std::array{read(x)}, {}, Grid{}, {});
    recorder.submit();
  };
  for (int i = 0; i < 2; ++i) {
    try {
      use();
      FAIL() << "The pipeline was made.";
    } catch (const DeviceError& error) {
      EXPECT_NE(std::string_view(error.what()).find("refused"), std::string_view::npos) << error.what();
    }
  }
  // The device goes on.
  const std::vector<float> ones(64, 1.0f);
  const Tensor y = device.tensor<float>(DType::f32, {64}, ones, "y"), z = device.tensor(DType::f32, {64}, "z");
  scale(recorder, y, z, 2.0f);
  recorder.submit();
  EXPECT_EQ(device.read<float>(z), std::vector<float>(64, 2.0f));
}

TEST(Errors, TooLargeABuffer) {
  Device device;
  if (device.info().limits.max_buffer / 4 > 0xffffffffull) {
    EXPECT_THROW(device.tensor(DType::f32, {0xffffffffu, 4096}, "huge"), Error);
  } else {
    EXPECT_THROW(device.tensor(DType::f32, {0xffffffffu}, "huge"), UsageError);
  }
}

// No work ends in no time, so a wait that may take none says so, with the name of what was waited for.
TEST(Errors, WaitsAreBounded) {
  Device device({.wait_limit = std::chrono::seconds(0)});
  const Tensor x = device.tensor(DType::f32, {4'000'000}, "x"), y = device.tensor(DType::f32, {4'000'000}, "y");
  Recorder recorder(device);
  for (int i = 0; i < 4; ++i) scale(recorder, x, y, 2.0f);
  recorder.submit();
  try {
    device.wait("step 7");
    FAIL() << "the work was done at once";
  } catch (const DeviceError& error) {
    EXPECT_NE(std::string(error.what()).find("step 7"), std::string::npos) << error.what();
  }
}

TEST(Errors, UnknownAdapter) {
  try {
    Device device({.adapter = "no such adapter"});
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("0: "), std::string::npos) << error.what();
  }
}

TEST(Profile, CountsDispatches) {
  Device device({.profile = true});
  const Tensor x = device.tensor(DType::f32, {4096}, "x"), y = device.tensor(DType::f32, {4096}, "y");
  {
    Recorder recorder(device);
    for (int i = 0; i < 300; ++i) scale(recorder, x, y, 1.0f);
  }
  const auto rows = device.profile();
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].label, "scale");
  EXPECT_EQ(rows[0].count, 300u);
  EXPECT_EQ(rows[0].bytes, 300 * 8.0 * 4096);
  EXPECT_GT(rows[0].seconds, 0.0);
}

class DiskCacheTest : public testing::Test {
 protected:
  void SetUp() override { std::filesystem::remove_all(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path folder_ = std::filesystem::path(testing::TempDir()) / "nibble-disk-cache";
};

std::vector<std::byte> bytes_of(std::string_view text) {
  std::vector<std::byte> bytes(text.size());
  std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

TEST_F(DiskCacheTest, KeepsAndFinds) {
  DiskCache(folder_).store(bytes_of("key"), bytes_of("value"));
  DiskCache again(folder_);
  EXPECT_EQ(again.load(bytes_of("key")), bytes_of("value"));
  EXPECT_TRUE(again.load(bytes_of("kex")).empty());
}

TEST_F(DiskCacheTest, DamageIsAMiss) {
  DiskCache cache(folder_);
  cache.store(bytes_of("key"), bytes_of("value"));
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-1, std::ios::end);
    file.put('X');
  }
  EXPECT_TRUE(cache.load(bytes_of("key")).empty());
}

TEST_F(DiskCacheTest, IsCapped) {
  DiskCache cache(folder_);
  for (const char* key : {"a", "b", "c"}) cache.store(bytes_of(key), std::vector<std::byte>(1000));
  DiskCache(folder_, 2500);
  std::uintmax_t total = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) total += entry.file_size();
  EXPECT_GT(total, 0u);
  EXPECT_LE(total, 2500u);
}

}  // namespace
}  // namespace nibble::gpu::device_test
