#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "nibble/io/json.h"
#include "nibble/io/safetensors.h"
#include "tests/support/files.h"

// Files with bytes changed at random: each is read or refused with a DataError, and nothing worse happens. Most useful
// under the sanitizers.
namespace nibble {
namespace {

// One to four changes: a byte set, a bit turned, bytes taken out or put in, the end cut off.
std::string mutated(std::string text, Rng& rng) {
  static constexpr std::string_view likely = "{}[]:,\"0123456789-.eE\\ntf ";
  const auto changes = 1 + rng.below(4);
  for (std::uint32_t change = 0; change < changes && !text.empty(); ++change) {
    const std::size_t at = rng.below(static_cast<std::uint32_t>(text.size()));
    const char byte = likely[rng.below(static_cast<std::uint32_t>(likely.size()))];
    switch (rng.below(6)) {
      case 0: text[at] = byte; break;
      case 1: text[at] = static_cast<char>(text[at] ^ (1 << rng.below(8))); break;
      case 2: text.erase(at, 1 + rng.below(3)); break;
      case 3: text.insert(at, 1, byte); break;
      case 4: text.insert(at, text.substr(at, rng.below(20))); break;
      default: text.resize(at); break;
    }
  }
  return text;
}

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
    const auto path = folder.write("m.safetensors", mutated(original, rng));
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
      const Json json = parse_json(mutated(original, rng), "m.json", {.unique_keys = i % 2 == 0});
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
}  // namespace nibble
