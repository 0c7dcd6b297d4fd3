#include "nibble/io/safetensors.h"

#include <cstring>

#include "nibble/base/error.h"
#include "nibble/base/half.h"
#include "tests/support/files.h"

namespace nibble::safetensors_test {
namespace {

using test::expect_error;

std::string with_length(std::uint64_t length, const std::string& rest) {
  std::string text(sizeof length, '\0');
  std::memcpy(text.data(), &length, sizeof length);
  return text + rest;
}

std::string file_of(const std::string& header, std::size_t data_bytes) {
  return with_length(header.size(), header + std::string(data_bytes, '\1'));
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return '"' + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

class SafetensorsTest : public testing::Test {
 protected:
  // The error that reading these bytes must give names the file and has every part.
  template <typename... Parts>
  void refuse(const std::string& bytes, const Parts&... parts) {
    const auto path = folder_.write("m.safetensors", bytes);
    expect_error<DataError>([&] { SafetensorsFile file(path); }, path.string(), parts...);
  }
  SafetensorsFile open(const std::string& bytes) { return SafetensorsFile(folder_.write("m.safetensors", bytes)); }

  test::TemporaryFolder folder_;
};

TEST_F(SafetensorsTest, ReadsInfosInAnyOrder) {
  const auto file = open(file_of("{" + entry("b", "F32", "[2,1]", "[4,12]") + ",\"__metadata__\":{\"k\":\"v\"}," +
                                     entry("a", "BF16", "[2]", "[0,4]") + "," + entry("none", "F16", "[0]", "[4,4]") +
                                     "," + entry("scalar", "I64", "[]", "[12,20]") + "}   ",
                                 20));
  EXPECT_EQ(file.tensors().size(), 4);
  EXPECT_EQ(file.metadata().at("k"), "v");
  EXPECT_EQ(file.at("b").shape, (Shape{2, 1}));
  EXPECT_EQ(file.at("b").dtype, DType::f32);
  EXPECT_EQ(file.at("scalar").numel(), 1);
  EXPECT_EQ(file.at("none").numel(), 0);
  EXPECT_EQ(file.find("c"), nullptr);
  expect_error<DataError>([&] { file.at("c"); }, "m.safetensors", "no tensor c");
}

TEST_F(SafetensorsTest, ReadsValuesInPieces) {
  std::string data(12, '\0');
  const float values[] = {1.5f, -2.0f};
  const std::uint16_t halves[] = {f32_to_f16(0.25f), f32_to_f16(-8.0f)};
  std::memcpy(data.data(), values, 8);
  std::memcpy(data.data() + 8, halves, 4);
  const std::string header = "{" + entry("x", "F32", "[2]", "[0,8]") + "," + entry("h", "F16", "[2]", "[8,12]") + "}";
  const auto file = open(with_length(header.size(), header + data));
  EXPECT_EQ(file.read_as_f32("x"), (std::vector<float>{1.5f, -2.0f}));
  EXPECT_EQ(file.read_as_f32("h"), (std::vector<float>{0.25f, -8.0f}));
  float second = 0;
  const auto out = std::as_writable_bytes(std::span(&second, 1));
  file.read(file.at("x"), 4, out);
  EXPECT_EQ(second, -2.0f);
  expect_error<Error>([&] { file.read(file.at("x"), 5, out); }, "Bytes 5 to 9 of the tensor x", "has 8");
}

TEST_F(SafetensorsTest, ListsTypesThatItDoesNotCompute) {
  const auto file =
      open(file_of("{" + entry("d", "F64", "[1]", "[0,8]") + "," + entry("q", "F4", "[3,2]", "[8,11]") + "}", 11));
  EXPECT_FALSE(file.at("d").dtype.has_value());
  expect_error<DataError>([&] { file.read_as_f32("d"); }, "tensor d is F64");
}

TEST_F(SafetensorsTest, RefusesBrokenFrames) {
  refuse("", "0 bytes");
  refuse("1234567", "7 bytes");
  refuse(with_length(UINT64_MAX, "{}"), "claims 18446744073709551615");
  refuse(with_length(100'000'001, "{}"), "at most 100000000");
  refuse(with_length(3, "{}"), "claims 3 bytes", "only 2 follow");
  refuse(with_length(0, ""), "open brace");
  refuse(file_of(" {}", 0), "open brace");
  refuse(file_of("[]", 0), "open brace");
  refuse(file_of("{\"a\"", 0), "not valid JSON");
  refuse(file_of("{\"a\":{\"b\":{\"c\":{\"d\":{}}}}}", 0), "deeper than 4");
  refuse(file_of("{}", 1), "end at byte 0", "has 1");
}

TEST_F(SafetensorsTest, RefusesBrokenEntries) {
  const auto one = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return file_of("{" + entry("t", dtype, shape, offsets) + "}", 8);
  };
  refuse(one("F33", "[2]", "[0,8]"), ": t]", "\"dtype\"", "found \"F33\"");
  refuse(one("F32", "[2]", "[0,9]"), "[0, 9]", "the 8 bytes");
  refuse(one("F32", "[2]", "[8,0]"), "must rise");
  refuse(one("F32", "[2]", "[-8,0]"), "data_offsets", "found a list of 2");
  refuse(one("F32", "[2]", "[0,18446744073709551615]"), "data_offsets");
  refuse(one("F32", "[2]", "[0]"), "two integers; found 1");
  refuse(one("F32", "[2]", "8"), "\"data_offsets\" must be a list");
  refuse(one("F32", "[3]", "[0,8]"), "span 8 bytes", "needs 12");
  refuse(one("F32", "[-2]", "[0,8]"), "\"shape\"");
  refuse(one("F32", "2", "[0,8]"), "\"shape\" must be a list");
  refuse(one("F32", "[4294967296,4294967296]", "[0,8]"), "more elements");
  refuse(one("F32", "[2305843009213693953,8]", "[0,8]"), "more elements");
  refuse(one("F4", "[3]", "[0,8]"), "whole bytes");
  refuse(one(
             "U8",
             "[8" +
                 [] {
                   std::string s;
                   for (int i = 0; i < 32; ++i) s += ",1";
                   return s;
                 }() +
                 "]",
             "[0,8]"),
         "33 dimensions");
  refuse(file_of(R"({"t":{"shape":[2],"data_offsets":[0,8]}})", 8), "\"dtype\"", "absent");
  refuse(file_of(R"({"t":{"dtype":"F32","data_offsets":[0,8]}})", 8), "\"shape\"", "absent");
  refuse(file_of(R"({"t":3})", 0), "object is expected");
  refuse(file_of(R"({"__metadata__":{"k":1}})", 0), "__metadata__", "a string", "found 1");
}

TEST_F(SafetensorsTest, RefusesOverlapsGapsAndDoubles) {
  const auto two = [](const std::string& first, const std::string& second, std::size_t bytes) {
    return file_of("{" + entry("a", "U8", "[4]", first) + "," + entry("b", "U8", "[4]", second) + "}", bytes);
  };
  EXPECT_NO_THROW(open(two("[0,4]", "[4,8]", 8)));
  refuse(two("[0,4]", "[3,7]", 7), "b overlaps");
  refuse(two("[0,4]", "[0,4]", 4), "b overlaps");
  refuse(two("[0,4]", "[5,9]", 9), "gap before the tensor b");
  refuse(two("[1,5]", "[5,9]", 9), "gap before the tensor a");
  refuse(two("[0,4]", "[4,8]", 9), "end at byte 8", "has 9");
  refuse(file_of("{" + entry("a", "U8", "[4]", "[0,4]") + "," + entry("a", "U8", "[4]", "[4,8]") + "}", 8),
         "comes twice");
}

}  // namespace
}  // namespace nibble::safetensors_test
