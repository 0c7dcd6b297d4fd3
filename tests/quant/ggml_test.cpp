#include "nibble/quant/ggml.h"

#include <bit>

#include "nibble/base/error.h"
#include "nibble/io/safetensors.h"
#include "tests/support/files.h"

namespace nibble::ggml_test {
namespace {

// Made by make_ggml_blocks.py with the Python package `gguf`.
class GgmlTest : public testing::Test {
 protected:
  std::vector<std::byte> bytes(const std::string& name) {
    const TensorInfo& tensor = file_.at(name);
    std::vector<std::byte> result(tensor.bytes);
    file_.read(tensor, 0, result);
    return result;
  }
  bool has(const std::string& name) const { return file_.find(name) != nullptr; }
  std::vector<float> values(const std::string& name) const { return file_.read_as_f32(name); }

 private:
  SafetensorsFile file_{test::source_path("tests/quant/ggml_blocks.safetensors")};
};

TEST_F(GgmlTest, EveryDecodedTypeGivesTheBitsOfThePythonPackage) {
  int types = 0;
  for (const GgmlTypeInfo& info : ggml_types) {
    EXPECT_EQ(info.decoded, has(std::string(info.name) + ".blocks")) << info.name;
    if (!info.decoded) continue;
    const auto blocks = bytes(std::string(info.name) + ".blocks");
    const auto expected = values(std::string(info.name) + ".values");
    ASSERT_EQ(blocks.size() / info.bytes * info.values, expected.size()) << info.name;
    std::vector<float> got(expected.size());
    ggml_dequantize(static_cast<GgmlType>(info.number), blocks, got);
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(got[i]), std::bit_cast<std::uint32_t>(expected[i]))
          << info.name << " " << i;
    }
    ++types;
  }
  EXPECT_EQ(types, 15);
}

TEST_F(GgmlTest, QuantisesToTheBytesOfTheReference) {
  const auto from = values("quantize.values");
  for (const GgmlType type : {GgmlType::f16, GgmlType::bf16, GgmlType::q8_0, GgmlType::q4_0}) {
    const auto expected = bytes("quantize." + std::string(info_of(type).name));
    std::vector<std::byte> got(expected.size());
    ggml_quantize(type, from, got);
    EXPECT_EQ(got, expected) << info_of(type).name;
  }
}

TEST_F(GgmlTest, TinyValuesHaveNoInfiniteInverse) {
  const std::vector<float> from(32, 1e-44f);
  std::vector<std::byte> blocks(info_of(GgmlType::q8_0).bytes);
  std::vector<float> got(32, 1.0f);
  ggml_quantize(GgmlType::q8_0, from, blocks);
  ggml_dequantize(GgmlType::q8_0, blocks, got);
  EXPECT_EQ(got, std::vector<float>(32, 0.0f));
}

TEST_F(GgmlTest, RefusesPartsOfBlocksAndOtherTypes) {
  std::vector<std::byte> blocks(34);
  std::vector<float> got(32);
  test::expect_error<Error>([&] { ggml_dequantize(GgmlType::q8_0, blocks, std::span(got).first(31)); }, "31 values",
                            "Q8_0");
  blocks.resize(144);
  test::expect_error<Error>([&] { ggml_quantize(GgmlType::q4_k, std::vector<float>(256), blocks); }, "Q4_K",
                            "not made here");
}

}  // namespace
}  // namespace nibble::ggml_test
