#include "nibble/weights/read_nf4.h"

#include <limits>

#include "nibble/base/error.h"
#include "nibble/base/half.h"
#include "nibble/base/rng.h"
#include "nibble/quant/nf4.h"
#include "tests/support/files.h"

namespace nibble {
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
    std::vector<std::uint8_t> expected(nf4_packed_bytes(values.size())), packed(expected.size());
    std::vector<float> expected_absmax(nf4_blocks(values.size())), absmax(expected_absmax.size());
    nf4_quantize(DType::bf16, bytes, expected, expected_absmax);
    for (const unsigned threads : {1u, 3u, 0u}) {
      std::fill(packed.begin(), packed.end(), std::uint8_t{0xaa});
      read_as_nf4(entry, packed, absmax, threads);
      EXPECT_TRUE(packed == expected) << count;
      EXPECT_TRUE(absmax == expected_absmax) << count;
    }
  }
}

TEST_F(ReadNf4, NamesFileTensorAndIndexOfABadValue) {
  std::vector<float> values(2'000'000, 1.0f);
  values[1'500'001] = std::numeric_limits<float>::quiet_NaN();
  const auto entry = write(DType::f32, {2000, 1000}, std::as_bytes(std::span(values)));
  std::vector<std::uint8_t> packed(1'000'000);
  std::vector<float> absmax(31'250);
  expect_error<DataError>([&] { read_as_nf4(entry, packed, absmax); }, "model.safetensors: w]", "index 1500001 is nan");
  absmax.pop_back();
  expect_error<Error>([&] { read_as_nf4(entry, packed, absmax); }, "31250 scales");
}

TEST_F(ReadNf4, RefusesOtherTypes) {
  const std::vector<std::uint8_t> values(64);
  const auto entry = write(DType::u8, {64}, std::as_bytes(std::span(values)));
  std::vector<std::uint8_t> packed(32);
  std::vector<float> absmax(1);
  expect_error<DataError>([&] { read_as_nf4(entry, packed, absmax); }, "w]", "is U8");
}

}  // namespace
}  // namespace nibble
