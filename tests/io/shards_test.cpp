#include "nibble/io/shards.h"

#include "nibble/base/error.h"
#include "nibble/io/checkpoint.h"
#include "nibble/io/json.h"
#include "tests/support/files.h"

namespace nibble::shards_test {
namespace {

// Each tensor is filled with the first letter of its name.
SavedShards save(const fs::path& folder, const std::vector<TensorSpec>& tensors, std::uint64_t most) {
  fs::create_directories(folder);
  return save_shards(folder, tensors, most, [](const TensorSpec& tensor, SafetensorsWriter& writer) {
    writer.append(std::vector<std::byte>(bytes_of(tensor), static_cast<std::byte>(tensor.name[0])));
  });
}

std::string letters(const Checkpoint& checkpoint, const std::string& name) {
  std::string text(checkpoint.at(name).tensor->bytes, '\0');
  checkpoint.read(name, 0, std::as_writable_bytes(std::span(text)));
  return text;
}

const std::vector<TensorSpec> tensors{{"c", DType::f32, {2, 2}},
                                      {"a", DType::bf16, {8}},
                                      {"big", DType::u8, {5, 9}},
                                      {"d", DType::f32, {3}},
                                      {"e", DType::f32, {1}}};

TEST(Shards, AreOneFileWhereAllFit) {
  const test::TemporaryFolder folder;
  const auto saved = save(folder / "m", tensors, 16 + 16 + 45 + 12 + 4);
  EXPECT_EQ(saved.files, 1);
  EXPECT_EQ(saved.bytes, 93);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder / "m"), {}), 1);
  EXPECT_EQ(letters(Checkpoint(folder / "m"), "d"), std::string(12, 'd'));
}

TEST(Shards, AreFilledInOrderAndALargeTensorHasItsOwn) {
  const test::TemporaryFolder folder;
  const auto saved = save(folder / "m", tensors, 32);
  EXPECT_EQ(saved.files, 3);
  const Json index = read_json_file(folder / "m/model.safetensors.index.json");
  EXPECT_EQ(index["metadata"], Json::parse(R"({"total_parameters": 61, "total_size": 93})"));
  // What huggingface_hub makes of these sizes: the large one goes before the shard being filled.
  EXPECT_EQ(index["weight_map"], Json::parse(R"({
      "big": "model-00001-of-00003.safetensors",
      "c": "model-00002-of-00003.safetensors", "a": "model-00002-of-00003.safetensors",
      "d": "model-00003-of-00003.safetensors", "e": "model-00003-of-00003.safetensors"})"));
  const Checkpoint checkpoint(folder / "m");
  for (const auto& tensor : tensors) {
    EXPECT_EQ(letters(checkpoint, tensor.name), std::string(bytes_of(tensor), tensor.name[0]));
    EXPECT_EQ(checkpoint.at(tensor.name).tensor->shape, tensor.shape);
  }
}

TEST(Shards, NeedRoomForAByte) {
  const test::TemporaryFolder folder;
  test::expect_error<UsageError>([&] { save(folder / "m", tensors, 0); }, "0 bytes");
  EXPECT_EQ(save(folder / "m", tensors, 1).files, 5);
}

// Byte after byte of all tensors in turn, the last tensor first.
TEST(ShardWriter, TakesTensorsInAnyOrder) {
  const test::TemporaryFolder folder;
  save(folder / "m", tensors, 32);
  fs::create_directories(folder / "n");
  ShardWriter writer(folder / "n", tensors, 32);
  for (std::uint64_t i = 0; i < 45; ++i) {
    for (auto tensor = tensors.rbegin(); tensor != tensors.rend(); ++tensor) {
      if (i < bytes_of(*tensor)) writer.append(tensor->name, std::vector<std::byte>(1, static_cast<std::byte>(tensor->name[0])));
    }
  }
  const auto saved = writer.finish(61);
  EXPECT_EQ(saved.files, 3);
  EXPECT_EQ(saved.bytes, 93);
  for (const auto& entry : fs::directory_iterator(folder / "m")) {
    EXPECT_EQ(test::slurp(entry.path()), test::slurp(folder / "n" / entry.path().filename().string())) << entry.path();
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder / "n"), {}), 4);
}

TEST(ShardWriter, RefusesWhatDoesNotBelong) {
  const test::TemporaryFolder folder;
  {
    ShardWriter writer(folder.path(), tensors, 1000);
    EXPECT_THROW(writer.append("f", {}), Error);
    EXPECT_THROW(writer.append("e", std::vector<std::byte>(5)), Error);
    writer.append("e", std::vector<std::byte>(4));
    EXPECT_THROW(writer.append("e", std::vector<std::byte>(1)), Error);
    EXPECT_THROW(writer.finish(61), Error);
  }
  EXPECT_TRUE(fs::is_empty(folder.path()));
  const std::vector<TensorSpec> many = [] {
    std::vector<TensorSpec> specs;
    for (int i = 0; i <= 1000; ++i) specs.push_back({std::to_string(i), DType::u8, {2}});
    return specs;
  }();
  test::expect_error<UsageError>([&] { ShardWriter(folder.path(), many, 1); }, "1001 files", "at most 1000");
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

}  // namespace
}  // namespace nibble::shards_test
