#include "nibble/base/error.h"
#include "nibble/io/safetensors.h"
#include "tests/support/files.h"

namespace nibble::safetensors_write_test {
namespace {

using test::expect_error;

// Copies a file through reader and writer, `piece` bytes at a time.
void rewrite(const fs::path& from, const fs::path& to, std::size_t piece) {
  const SafetensorsFile file(from);
  std::vector<TensorSpec> specs;
  for (const auto& [name, tensor] : file.tensors()) specs.push_back({name, tensor.dtype.value(), tensor.shape});
  SafetensorsWriter writer(to, specs, file.metadata());
  std::vector<std::byte> buffer(piece);
  for (const auto& spec : writer.tensors()) {
    const auto& tensor = file.at(spec.name);
    for (std::uint64_t offset = 0; offset < tensor.bytes; offset += piece) {
      const auto bytes = std::span(buffer).first(std::min<std::uint64_t>(piece, tensor.bytes - offset));
      file.read(tensor, offset, bytes);
      writer.append(bytes);
    }
  }
  writer.finish();
}

// These files were written by the official library, from PyTorch and from NumPy.
TEST(SafetensorsWriter, WritesTheBytesOfTheOfficialLibrary) {
  const test::TemporaryFolder folder;
  for (const auto* name : {"adapter_trained/adapter_model.safetensors", "golden.safetensors"}) {
    const auto original = test::source_path(std::string("tests/golden/tiny/") + name);
    rewrite(original, folder / "copy.safetensors", 100'003);
    EXPECT_TRUE(test::slurp(folder / "copy.safetensors") == test::slurp(original)) << name;
  }
}

TEST(SafetensorsWriter, OrdersByTypeThenName) {
  const test::TemporaryFolder folder;
  SafetensorsWriter writer(folder / "m.safetensors", {{"b", DType::f16, {1}},
                                                      {"u", DType::u8, {1}},
                                                      {"l", DType::i64, {1}},
                                                      {"a", DType::bf16, {1}},
                                                      {"x\"\n", DType::f32, {}},
                                                      {"a32", DType::i32, {1}},
                                                      {"b32", DType::u32, {1}}});
  std::string order;
  for (const auto& tensor : writer.tensors()) order += tensor.name + " ";
  EXPECT_EQ(order, "l x\"\n b32 a32 a b u ");
  writer.append(std::vector<std::byte>(8 + 4 + 4 + 4 + 2 + 2 + 1));
  writer.finish();
  const SafetensorsFile file(folder / "m.safetensors");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.at("x\"\n").numel(), 1);
  EXPECT_EQ(file.at("l").offset % 8, 0);
}

TEST(SafetensorsWriter, WantsExactlyItsBytes) {
  const test::TemporaryFolder folder;
  const auto path = folder / "m.safetensors";
  {
    SafetensorsWriter writer(path, {{"a", DType::f32, {2}}});
    writer.append(std::vector<std::byte>(6));
    expect_error<Error>([&] { writer.append(std::vector<std::byte>(3)); }, "3 bytes", "only 2");
    expect_error<Error>([&] { writer.finish(); }, "2 bytes still missing");
  }
  EXPECT_TRUE(fs::is_empty(folder.path()));
  expect_error<Error>([&] { SafetensorsWriter(path, {{"a", DType::u8, {1}}, {"a", DType::f32, {1}}}); }, "given twice");
  expect_error<Error>([&] { SafetensorsWriter(path, {{"__metadata__", DType::u8, {1}}}); }, "reserved");
  expect_error<Error>([&] { SafetensorsWriter(path, {{"a", DType::u8, {-1}}}); }, "[-1]");
}

}  // namespace
}  // namespace nibble::safetensors_write_test
