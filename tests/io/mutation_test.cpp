#include "nibble/base/error.h"
#include "nibble/io/json.h"
#include "nibble/io/safetensors.h"
#include "tests/support/files.h"
#include "tests/support/mutated.h"

// Files with bytes changed at random: each is read or refused with a DataError, and nothing worse happens. Most useful
// under the sanitizers.
namespace nibble::mutation_test {
namespace {

std::string small_safetensors() {
  const test::TemporaryFolder folder;
  SafetensorsWriter writer(folder / "m",
                           {{"weight", DType::f32, {2, 3}}, {"half", DType::bf16, {4}}, {"n", DType::i64, {}}});
  writer.append(std::vector<std::byte>(24 + 8 + 8));
  writer.finish();
  return test::slurp(folder / "m");
}

TEST(Mutation, SafetensorsAreReadOrRefused) {
  const test::TemporaryFolder folder;
  const std::string original = small_safetensors();
  Rng rng(11);
  int read = 0, refused = 0;
  for (int i = 0; i < 5'000; ++i) {
    const auto path = folder.write("m.safetensors", test::mutated(original, rng));
    try {
      const SafetensorsFile file(path);
      for (const auto& [name, tensor] : file.tensors()) {
        std::vector<std::byte> bytes(tensor.bytes);
        file.read(tensor, 0, bytes);
      }
      ++read;
    } catch (const DataError&) {
      ++refused;
    }
  }
  EXPECT_GT(read, 25);
  EXPECT_GT(refused, 2'500);
}

TEST(Mutation, JsonIsReadOrRefused) {
  const std::string original = test::slurp(test::source_path("tests/golden/tiny/adapter_trained/adapter_config.json"));
  Rng rng(12);
  int read = 0, refused = 0;
  for (int i = 0; i < 20'000; ++i) {
    try {
      const Json json = parse_json(test::mutated(original, rng), "m.json", {.unique_keys = i % 2 == 0});
      EXPECT_EQ(parse_json(write_json(json), "again"), json);
      ++read;
    } catch (const DataError&) {
      ++refused;
    }
  }
  EXPECT_GT(read, 100);
  EXPECT_GT(refused, 10'000);
}

}  // namespace
}  // namespace nibble::mutation_test
