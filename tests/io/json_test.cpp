#include "nibble/io/json.h"

#include <bit>
#include <cmath>
#include <limits>

#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "tests/support/files.h"

namespace nibble::json_test {
namespace {

using test::expect_error;

TEST(JsonParse, NamesThePlaceOfAFault) {
  expect_error<DataError>([] { parse_json("{\n\"a\": ?}", "f.json"); }, "[f.json]", "line 2, column 6");
  expect_error<DataError>([] { parse_json("", "f.json"); }, "not valid JSON");
  expect_error<DataError>([] { parse_json("{} {}", "f.json"); }, "not valid JSON");
  expect_error<DataError>([] { parse_json("[\"\xff\"]", "f.json"); }, "not valid JSON");
  expect_error<DataError>([] { parse_json("[1e999]", "f.json"); }, "not valid JSON");
}

TEST(JsonParse, HoldsToItsLimits) {
  EXPECT_EQ(parse_json("[[1]]", "f", {.max_depth = 2}), Json::parse("[[1]]"));
  expect_error<DataError>([] { parse_json("[[[1]]]", "f", {.max_depth = 2}); }, "deeper than 2");
  expect_error<DataError>([] { parse_json(std::string(1'000'000, '['), "f"); }, "deeper than 64");
  expect_error<DataError>([] { parse_json("[1, 2]", "f", {.max_bytes = 5}); }, "6 bytes", "at most 5");
  const JsonLimits unique{.unique_keys = true};
  EXPECT_EQ(parse_json(R"({"a":1,"a":2})", "f")["a"], 2);
  EXPECT_NO_THROW(parse_json(R"({"a":{"a":1},"b":{"a":1}})", "f", unique));
  expect_error<DataError>([&] { parse_json(R"({"b":{"a":1,"\u0061":2}})", "f", unique); }, "\"a\" comes twice");
}

class JsonObjectTest : public testing::Test {
 protected:
  Json json_ = Json::parse(R"({"i": 7, "whole": 4.0, "x": 0.5, "s": "text", "t": true, "n": null, "list": [1, 2],
      "strings": ["a", "b"], "o": {"k": -1}, "big": 18446744073709551615, "mixed": ["a", 1]})");
  JsonObject object_{json_, "c.json"};
};

TEST_F(JsonObjectTest, GivesTypedValuesAndDefaults) {
  EXPECT_EQ(object_.integer("i", {1, 10}), 7);
  EXPECT_EQ(object_.integer("whole", {}), 4);
  EXPECT_EQ(object_.integer("absent", {}, 3), 3);
  EXPECT_EQ(object_.integer("n", {}, 3), 3);
  EXPECT_EQ(object_.number("x", {0, 1}), 0.5);
  EXPECT_EQ(object_.number("i", {0, 10}), 7.0);
  EXPECT_EQ(object_.string("s"), "text");
  EXPECT_EQ(object_.string("absent", "d"), "d");
  EXPECT_TRUE(object_.boolean("t"));
  EXPECT_TRUE(object_.boolean("absent", true));
  EXPECT_EQ(object_.strings("strings"), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(object_.integers("list", {}), (std::vector<std::int64_t>{1, 2}));
  EXPECT_EQ(object_.integers("i", {}), (std::vector<std::int64_t>{7}));
  EXPECT_TRUE(object_.integers("absent", {}).empty());
  EXPECT_EQ(object_.object("o")->integer("k", {-2, 2}), -1);
  EXPECT_FALSE(object_.object("absent").has_value());
  EXPECT_FALSE(object_.has("n"));
}

TEST_F(JsonObjectTest, NamesFileKeyExpectedAndFound) {
  expect_error<DataError>(
      [&] {
        object_.integer("i", {8, 10});
      },
      "[c.json]", "\"i\"", "an integer from 8 to 10", "found 7");
  expect_error<DataError>([&] { object_.integer("x", {}); }, "\"x\"", "found 0.5");
  expect_error<DataError>([&] { object_.integer("big", {}); }, "\"big\"", "found 18446744073709551615");
  expect_error<DataError>([&] { object_.integer("absent", {}); }, "\"absent\"", "it is absent");
  expect_error<DataError>([&] { object_.integer("s", {}, 3); }, "\"s\"", "found \"text\"");
  expect_error<DataError>([&] { object_.number("s", {0, 1}); }, "a number from 0 to 1", "found \"text\"");
  expect_error<DataError>([&] { object_.number("x", {1, 2}); }, "a number from 1 to 2", "found 0.5");
  expect_error<DataError>([&] { object_.boolean("i"); }, "true or false", "found 7");
  expect_error<DataError>([&] { object_.string("o"); }, "a string", "an object of 1 keys");
  expect_error<DataError>([&] { object_.strings("mixed"); }, "list of strings");
  expect_error<DataError>([&] { object_.integers("strings", {}); }, "an integer", "a list of 2 values");
  expect_error<DataError>([&] { object_.object("list"); }, "an object", "a list of 2 values");
  expect_error<DataError>([&] { object_.object("o")->integer("k", {0, 1}); }, "[c.json: o]", "found -1");
  expect_error<DataError>([&] { JsonObject(json_["list"], "l.json"); }, "[l.json]", "a list of 2 values");
}

// The expected texts are what Python 3.11's json.dumps gives.
TEST(JsonWrite, FormatsAsPythonDoes) {
  const auto line = [](double value) { return write_json_line(value); };
  EXPECT_EQ(line(1.0), "1.0");
  EXPECT_EQ(line(-0.0), "-0.0");
  EXPECT_EQ(line(1e-05), "1e-05");
  EXPECT_EQ(line(0.0001), "0.0001");
  EXPECT_EQ(line(1e15), "1000000000000000.0");
  EXPECT_EQ(line(1e16), "1e+16");
  EXPECT_EQ(line(123456789012345680.0), "1.2345678901234568e+17");
  EXPECT_EQ(line(1.5e300), "1.5e+300");
  EXPECT_EQ(line(5e-324), "5e-324");
  EXPECT_EQ(line(0.1), "0.1");
  EXPECT_EQ(line(static_cast<double>(0.1f)), "0.10000000149011612");
  EXPECT_EQ(write_json_line("a\"\\/\n\x7f\u00e9\U0001F600"), R"("a\"\\/\n\u007f\u00e9\ud83d\ude00")");
  EXPECT_EQ(write_json_line(Json::parse(R"({"b":[1,{}],"a":null,"c":[]})")), R"({"a": null, "b": [1, {}], "c": []})");
  EXPECT_EQ(write_json(Json::parse(R"({"b":[1,true],"a":{"x":1.5},"c":[],"d":{}})")),
            "{\n  \"a\": {\n    \"x\": 1.5\n  },\n  \"b\": [\n    1,\n    true\n  ],\n  \"c\": [],\n  \"d\": {}\n}");
}

TEST(JsonWrite, RewritesAPeftFileByteForByte) {
  const auto path = test::source_path("tests/golden/tiny/adapter_trained/adapter_config.json");
  EXPECT_EQ(write_json(read_json_file(path)), test::slurp(path));
}

TEST(JsonWrite, DoublesReadBackBitForBit) {
  Rng rng(1);
  for (int i = 0; i < 100'000; ++i) {
    const auto value = std::bit_cast<double>(static_cast<std::uint64_t>(rng.next_u32()) << 32 | rng.next_u32());
    if (!std::isfinite(value)) continue;
    const auto back = parse_json(write_json(value), "x").get<double>();
    ASSERT_EQ(std::bit_cast<std::uint64_t>(back), std::bit_cast<std::uint64_t>(value)) << value;
  }
}

TEST(JsonWrite, RefusesWhatJsonCannotHold) {
  expect_error<Error>([] { write_json(std::numeric_limits<double>::infinity()); }, "finite");
  expect_error<Error>([] { write_json(std::nan("")); }, "finite");
  expect_error<Error>([] { write_json("\xff"); }, "UTF-8");
}

}  // namespace
}  // namespace nibble::json_test
