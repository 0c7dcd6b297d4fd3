#include "nibble/quant/double_quant.h"

#include <cmath>
#include <limits>

#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "nibble/io/checkpoint.h"
#include "nibble/io/json.h"
#include "nibble/quant/nf4_table.h"
#include "tests/quant/quantize.h"
#include "tests/support/files.h"

namespace nibble::double_quant_test {
namespace {

using test::expect_error;

// What bitsandbytes 0.50 saved and restored (make_bnb_sample.py).
class BitsandbytesSample : public testing::Test {
 protected:
  std::vector<std::uint8_t> bytes(const std::string& part) const {
    const auto& tensor = file_.at(module_ + ".weight" + part);
    std::vector<std::uint8_t> values(tensor.bytes);
    file_.read(tensor, 0, std::as_writable_bytes(std::span(values)));
    return values;
  }
  std::vector<float> floats(const std::string& part) const { return file_.read_as_f32(module_ + ".weight" + part); }
  float offset() const {
    const auto text = bytes(".quant_state.bitsandbytes__nf4");
    return parse_json({reinterpret_cast<const char*>(text.data()), text.size()}, "quant_state").at("nested_offset");
  }

  std::string module_ = "model.layers.0.self_attn.k_proj";
  SafetensorsFile file_{test::source_path("tests/quant/bnb_sample.safetensors")};
};

TEST_F(BitsandbytesSample, TheMapsAreOurs) {
  const auto map = floats(".nested_quant_map");
  EXPECT_TRUE(std::equal(map.begin(), map.end(), dynamic_map().begin(), dynamic_map().end()));
  const auto codes = floats(".quant_map");
  EXPECT_TRUE(std::equal(codes.begin(), codes.end(), nf4_codes.begin(), nf4_codes.end()));
}

TEST_F(BitsandbytesSample, IsReadExactly) {
  const auto codes = bytes(".absmax");
  const auto map = floats(".nested_quant_map");
  const auto nested = floats(".nested_absmax");
  std::vector<float> absmax(codes.size());
  double_dequantize({.codes = codes, .map = map, .nested_absmax = nested, .offset = offset()}, absmax);
  const auto expected = file_.read_as_f32("dequantized." + module_);
  std::vector<float> values(expected.size());
  nf4_dequantize(bytes(""), absmax, values);
  EXPECT_TRUE(values == expected);
}

TEST_F(BitsandbytesSample, IsWrittenExactly) {
  const auto weights =
      test::quantize(Checkpoint(test::source_path("models/tiny-qwen3")).read_as_f32(module_ + ".weight"));
  EXPECT_TRUE(weights.packed == bytes(""));
  const auto scales = double_quantize(weights.absmax);
  EXPECT_EQ(scales.offset, offset());
  EXPECT_TRUE(scales.codes == bytes(".absmax"));
  EXPECT_EQ(scales.nested_absmax, floats(".nested_absmax"));
}

TEST(DynamicMap, RisesAndHasZeroAndOne) {
  const auto& map = dynamic_map();
  for (std::size_t i = 1; i < map.size(); ++i) EXPECT_LT(map[i - 1], map[i]);
  EXPECT_EQ(map[127], 0.0f);
  EXPECT_EQ(map[255], 1.0f);
  EXPECT_GT(map[0], -1.0f);
}

TEST(DoubleQuantize, TakesTheNearestEntry) {
  Rng rng(3);
  std::vector<float> absmax(1000);
  for (auto& value : absmax) value = rng.uniform(0.0f, 4.0f);
  const auto q = double_quantize(absmax);
  ASSERT_EQ(q.nested_absmax.size(), 4);
  const auto& map = dynamic_map();
  for (std::size_t i = 0; i < absmax.size(); ++i) {
    const float scaled = (absmax[i] - q.offset) * (1.0f / q.nested_absmax[i / 256]);
    float best = std::numeric_limits<float>::infinity();
    std::size_t code = 0;
    for (std::size_t c = 0; c < map.size(); ++c) {
      const float distance = std::abs(scaled - map[c]);
      if (distance >= best) continue;
      best = distance;
      code = c;
    }
    EXPECT_EQ(q.codes[i], code);
  }
}

TEST(DoubleQuantize, EqualScalesAreExact) {
  const std::vector<float> absmax(300, 0.125f);
  const auto q = double_quantize(absmax);
  EXPECT_EQ(q.offset, 0.125f);
  std::vector<float> back(300);
  double_dequantize({.codes = q.codes, .map = dynamic_map(), .nested_absmax = q.nested_absmax, .offset = q.offset},
                    back);
  EXPECT_EQ(back, absmax);
  EXPECT_TRUE(double_quantize({}).codes.empty());
}

TEST(DoubleQuantize, RefusesWhatDoesNotFit) {
  const std::vector<std::uint8_t> codes(257);
  const std::vector<float> nested(1);
  std::vector<float> out(257);
  expect_error<DataError>(
      [&] { double_dequantize({.codes = codes, .map = dynamic_map(), .nested_absmax = nested}, out); },
      "257 codes, a map of 256 and 1 nested scales");
  expect_error<DataError>([&] { double_quantize(std::vector<float>{1.0f, NAN}); }, "finite");
}

}  // namespace
}  // namespace nibble::double_quant_test
