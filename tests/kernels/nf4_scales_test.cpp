#include "nibble/kernels/nf4_scales.h"

#include "nibble/base/error.h"
#include "nibble/quant/double_quant.h"
#include "tests/support/gpu_test.h"

#include <cmath>
#include <cstring>

namespace nibble::nf4_scales_test {
namespace {

using test::device;
using test::GuardedTensor;

// Scales as a layer has them, quantised, and what the processor decodes them to.
struct Scales {
  std::vector<Nf4ScalePart> parts;
  std::vector<std::uint8_t> codes;  // with 0xff between parts
  std::vector<float> blocks, expected;

  // Matrices of so many scales: {matrices, scales of one} of each part, `gap` scales behind each.
  Scales(const std::vector<std::pair<std::uint32_t, std::uint32_t>>& shapes, std::uint32_t gap) {
    std::uint64_t seed = 1;
    for (const auto& [matrices, of_matrix] : shapes) {
      parts.push_back({.first = static_cast<std::uint32_t>(codes.size()), .count = matrices * of_matrix, .of_matrix = of_matrix,
                       .first_block = static_cast<std::uint32_t>(blocks.size() / 2)});
      for (std::uint32_t i = 0; i < matrices; ++i) add_matrix(of_matrix, ++seed);
      const std::size_t end = (codes.size() + 3) / 4 * 4 + gap;
      codes.resize(end, 0xff);
      expected.resize(end, 0.0f);
    }
  }

  Tensor upload_codes() const {
    return Tensor(device().tensor<std::uint8_t>(DType::u8, {static_cast<std::uint32_t>(codes.size())}, codes, "codes").buffer(), 0, DType::u32,
                  {static_cast<std::uint32_t>(codes.size() / 4)});
  }
  Tensor upload_blocks() const { return test::upload(blocks, {static_cast<std::uint32_t>(blocks.size() / 2), 2}); }

 private:
  // Scales of very different sizes, so that products with the map are rounded in every place.
  void add_matrix(std::uint32_t count, std::uint64_t seed) {
    auto absmax = test::random_values(count, seed, 0.05f);
    for (std::size_t i = 0; i < absmax.size(); ++i) absmax[i] = 0.06f + absmax[i] * std::exp2(-static_cast<float>(i / 256 % 5));
    const DoubleQuantized whole = double_quantize(absmax);
    double_dequantize({.codes = whole.codes, .map = dynamic_map(), .nested_absmax = whole.nested_absmax, .offset = whole.offset}, absmax);
    codes.insert(codes.end(), whole.codes.begin(), whole.codes.end());
    expected.insert(expected.end(), absmax.begin(), absmax.end());
    for (const float largest : whole.nested_absmax) blocks.insert(blocks.end(), {largest, whole.offset});
  }
};

Tensor map_on_device() { return device().tensor<float>(DType::f32, {256}, dynamic_map(), "map"); }

void expect_decoded(const Scales& scales) {
  GuardedTensor out(DType::f32, {static_cast<std::uint32_t>(scales.expected.size())});
  test::run(DecodeNf4Scales{.codes = scales.upload_codes(), .blocks = scales.upload_blocks(), .map = map_on_device(), .parts = scales.parts,
                            .absmax = out.tensor()});
  const auto got = test::download(out.tensor());
  ASSERT_EQ(got.size(), scales.expected.size());
  EXPECT_EQ(std::memcmp(got.data(), scales.expected.data(), got.size() * sizeof(float)), 0);
  out.expect_guards_intact();
}

TEST(Nf4Scales, AreDecodedAsOnTheProcessorBitForBit) {
  expect_decoded(Scales({{1, 64}}, 0));
  expect_decoded(Scales({{1, 1}}, 60));
  expect_decoded(Scales({{1, 1024}, {1, 256}, {1, 300}}, 0));
  expect_decoded(Scales({{1, 4096}, {1, 64}, {1, 255}, {1, 257}, {1, 9}, {1, 512}, {1, 1000}}, 24));
}

// Matrices whose scales end within a word, and within a block.
TEST(Nf4Scales, OfManyMatricesHaveBlocksOfTheirOwn) {
  expect_decoded(Scales({{1, 128}, {8, 259}, {5, 1}, {3, 256}}, 8));
  expect_decoded(Scales({{64, 3}, {7, 514}}, 0));
}

TEST(Nf4Scales, GoBeyondOneBinding) {
  const auto scales = static_cast<std::uint32_t>(device().info().limits.max_binding / sizeof(float));
  if (test::must_skip(scales <= 1u << 26)) GTEST_SKIP() << "A binding takes " << device().info().limits.max_binding << " bytes.";
  expect_decoded(Scales({{1, scales - 100}, {3, 1001}}, 4));
}

TEST(Nf4Scales, WrongSizesAreRefused) {
  const Scales scales({{1, 256}, {2, 128}}, 0);
  const Tensor codes = scales.upload_codes(), blocks = scales.upload_blocks(), map = map_on_device();
  const GuardedTensor out(DType::f32, {512});
  const auto refused = [&](const std::vector<Nf4ScalePart>& parts, const Tensor& of_blocks) {
    gpu::Recorder recorder(device());
    const DecodeNf4Scales op{.codes = codes, .blocks = of_blocks, .map = map, .parts = parts, .absmax = out.tensor()};
    EXPECT_THROW(record(recorder, op), Error);
  };
  refused({}, blocks);
  refused({{0, 256, 256, 0}, {256, 256, 127, 1}}, blocks);
  refused({{0, 256, 256, 0}, {255, 256, 128, 1}}, blocks);
  refused({{0, 256, 256, 0}, {256, 384, 128, 1}}, blocks);
  refused({{0, 256, 256, 0}, {256, 256, 128, 2}}, blocks);
  refused({{4, 252, 252, 0}}, blocks);
  refused(scales.parts, blocks.view({6, 1}));
  refused(std::vector<Nf4ScalePart>(8, {0, 0, 1, 0}), blocks);
}

}  // namespace
}  // namespace nibble::nf4_scales_test
