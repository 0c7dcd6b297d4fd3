#include "nibble/base/error.h"
#include "nibble/weights/config.h"
#include "nibble/weights/peft.h"
#include "tests/support/files.h"

// Every key of a config with every kind of value: it is read or refused with a DataError, and nothing worse happens.
namespace nibble::mutation_test {
namespace {

const Json& odd_values() {
  static const Json values =
      Json::parse(R"([null, true, false, 0, 1, -1, 3, 1.5, -0.0, 1e300, 1e-300, 9223372036854775807,
      18446744073709551615, -9223372036854775808, 4294967296, "", "x", [], [null], [-1], ["x"], [[]], {}, {"x": 1},
      {"rope_type": 1}, {"rope_theta": []}])");
  return values;
}

template <typename Action>
int count_refused(const Json& original, Action action) {
  int refused = 0;
  for (const auto& [key, value] : original.items()) {
    for (const auto& odd : odd_values()) {
      Json json = original;
      json[key] = odd;
      try {
        action(json);
      } catch (const DataError&) {
        ++refused;
      }
    }
  }
  return refused;
}

TEST(OddValues, InAModelConfig) {
  auto json = read_json_file(test::source_path("models/tiny-qwen3/config.json"));
  json["rope_theta"] = 1e6;
  json["rope_scaling"] = nullptr;
  const int refused = count_refused(json, [](const Json& changed) {
    const auto config = parse_model_config(JsonObject(changed, "config.json"));
    EXPECT_GT(config.num_heads, 0);
    EXPECT_EQ(config.num_heads % config.num_kv_heads, 0);
    EXPECT_GE(config.rope.theta, 1.0f);
  });
  EXPECT_GT(refused, 200);
}

TEST(OddValues, InAnAdapterConfig) {
  const test::TemporaryFolder folder;
  const auto json = read_json_file(test::source_path("tests/golden/tiny/adapter_trained/adapter_config.json"));
  const int refused = count_refused(json, [&](const Json& changed) {
    folder.write("adapter_config.json", changed.dump());
    const auto config = read_lora_config(folder.path());
    EXPECT_GT(config.rank, 0);
    EXPECT_FALSE(config.target_modules.empty());
  });
  EXPECT_GT(refused, 200);
}

}  // namespace
}  // namespace nibble::mutation_test
