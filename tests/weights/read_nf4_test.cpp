#include "nibble/weights/read_nf4.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <thread>

#include "nibble/base/error.h"
#include "nibble/base/half.h"
#include "nibble/base/rng.h"
#include "nibble/quant/nf4.h"
#include "tests/support/files.h"

namespace nibble::read_nf4_test {
namespace {

using test::expect_error;

class ReadNf4 : public testing::Test {
 protected:
  // A file with one tensor behind another one.
  Checkpoint::Entry write(DType dtype, Shape shape, std::span<const std::byte> bytes) {
    {
      SafetensorsWriter writer(folder_ / "model.safetensors", {{"pad", DType::i64, {1}}, {"w", dtype, shape}});
      for (const auto& spec : writer.tensors()) {
        writer.append(spec.name == "w" ? bytes : std::as_bytes(std::span("pad-pad")));
      }
      writer.finish();
    }
    checkpoint_ = std::make_unique<Checkpoint>(folder_.path());
    return checkpoint_->at("w");
  }

  test::TemporaryFolder folder_;
  std::unique_ptr<Checkpoint> checkpoint_;
};

TEST_F(ReadNf4, EqualsQuantisingTheWholeTensor) {
  for (const std::int64_t count : {1, 64, 1'000'003, 3 << 19}) {
    std::vector<std::uint16_t> values(static_cast<std::size_t>(count));
    Rng rng(5);
    for (auto& value : values) value = f32_to_bf16(rng.normal());
    const auto bytes = std::as_bytes(std::span(values));
    const auto entry = write(DType::bf16, {count}, bytes);
    std::vector<std::uint8_t> expected(nf4_packed_bytes(values.size()));
    std::vector<float> expected_absmax(nf4_blocks(values.size()));
    nf4_quantize(DType::bf16, bytes, expected, expected_absmax);
    for (const unsigned threads : {1u, 3u, 0u}) {
      Nf4Reader reader({{entry}}, {.threads = threads});
      const Nf4Values values_read = reader.next();
      EXPECT_TRUE(std::ranges::equal(values_read.packed, expected)) << count;
      EXPECT_TRUE(std::ranges::equal(values_read.absmax, expected_absmax)) << count;
    }
  }
}

// Buffers are used again while the caller still looks at the last one.
TEST_F(ReadNf4, GivesTensorsInTheirOrderFromFewBuffers) {
  std::vector<std::uint16_t> values(700'000);
  Rng rng(7);
  for (auto& value : values) value = f32_to_bf16(rng.normal());
  const auto entry = write(DType::bf16, {700'000}, std::as_bytes(std::span(values)));
  // Parts of one file, as tensors of other sizes.
  std::vector<TensorInfo> parts;
  for (const std::uint64_t count : {700'000u, 64u, 300'032u, 6400u, 262'144u, 262'208u, 128u}) {
    TensorInfo part = *entry.tensor;
    part.offset += 2 * (700'000 - count);
    part.shape = {static_cast<std::int64_t>(count)};
    part.bytes = 2 * count;
    parts.push_back(part);
  }
  std::vector<Nf4Source> sources;
  for (const TensorInfo& part : parts) sources.push_back({{entry.file, &part}});
  for (const std::size_t buffers : {1u, 2u, 3u, 100u}) {
    Nf4Reader reader(sources, {.buffers = buffers, .threads = 3});
    for (const TensorInfo& part : parts) {
      const auto bytes = std::as_bytes(std::span(values).last(part.numel()));
      std::vector<std::uint8_t> packed(nf4_packed_bytes(part.numel()));
      std::vector<float> absmax(nf4_blocks(part.numel()));
      nf4_quantize(DType::bf16, bytes, packed, absmax, {.simd = Simd::scalar});
      const Nf4Values got = reader.next();
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      EXPECT_TRUE(std::ranges::equal(got.packed, packed)) << part.numel() << " of " << buffers;
      EXPECT_TRUE(std::ranges::equal(got.absmax, absmax)) << part.numel() << " of " << buffers;
    }
    EXPECT_GT(reader.times().read, 0);
    EXPECT_GT(reader.times().quantize, 0);
    expect_error<Error>([&] { reader.next(); }, "7 tensors have been given out");
  }
}

TEST_F(ReadNf4, EndsBeforeAllHasBeenTaken) {
  std::vector<std::uint16_t> values(1'000'000, f32_to_bf16(1.0f));
  const auto entry = write(DType::bf16, {1'000'000}, std::as_bytes(std::span(values)));
  { const Nf4Reader unused(std::vector<Nf4Source>(5, {entry}), {.buffers = 1, .threads = 3}); }
  Nf4Reader some(std::vector<Nf4Source>(5, {entry}), {.buffers = 2, .threads = 3});
  EXPECT_EQ(some.next().absmax[0], 1.0f);
  EXPECT_EQ(Nf4Reader({}).times().read, 0);
}

TEST_F(ReadNf4, NamesFileTensorAndIndexOfABadValue) {
  std::vector<float> values(2'000'000, 1.0f);
  values[1'500'001] = std::numeric_limits<float>::quiet_NaN();
  const auto entry = write(DType::f32, {2000, 1000}, std::as_bytes(std::span(values)));
  {
    Nf4Reader reader({{entry}, {entry}});
    expect_error<DataError>([&] { reader.next(); }, "model.safetensors: w]", "index 1500001 is nan");
  }
  values[30'000] = std::numeric_limits<float>::infinity();
  values[900'000] = -std::numeric_limits<float>::infinity();
  Nf4Reader again({{write(DType::f32, {2000, 1000}, std::as_bytes(std::span(values)))}});
  expect_error<DataError>([&] { again.next(); }, "model.safetensors: w]", "index 30000 is inf");
}

TEST_F(ReadNf4, RefusesOtherTypes) {
  const std::vector<std::uint8_t> values(64);
  const auto entry = write(DType::u8, {64}, std::as_bytes(std::span(values)));
  expect_error<DataError>([&] { Nf4Reader reader({{entry}}); }, "w]", "is U8");
}

}  // namespace
}  // namespace nibble::read_nf4_test
