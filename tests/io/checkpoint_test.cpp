#include "nibble/io/checkpoint.h"

#include "nibble/base/error.h"
#include "tests/support/files.h"

namespace nibble::checkpoint_test {
namespace {

using test::expect_error;

class CheckpointTest : public testing::Test {
 protected:
  void write_shard(const std::string& file, const std::string& tensor, float value) {
    SafetensorsWriter writer(folder_ / file, {{tensor, DType::f32, {1}}});
    writer.append(std::as_bytes(std::span(&value, 1)));
    writer.finish();
  }
  void write_index(const std::string& weight_map) {
    folder_.write("model.safetensors.index.json", R"({"metadata":{"total_size":8},"weight_map":)" + weight_map + "}");
  }
  template <typename... Parts>
  void refuse(const Parts&... parts) {
    expect_error<DataError>([&] { Checkpoint checkpoint(folder_.path()); }, parts...);
  }

  test::TemporaryFolder folder_;
};

TEST_F(CheckpointTest, ReadsOneFile) {
  write_shard("model.safetensors", "a", 1.5f);
  const Checkpoint checkpoint(folder_.path());
  EXPECT_EQ(checkpoint.read_as_f32("a"), std::vector<float>{1.5f});
  EXPECT_EQ(checkpoint.total_bytes(), 4);
  EXPECT_FALSE(checkpoint.has("b"));
  expect_error<DataError>([&] { checkpoint.at("b"); }, folder_.path().string(), "no tensor b");
}

TEST_F(CheckpointTest, ReadsShards) {
  write_shard("one.safetensors", "a", 1.0f);
  write_shard("two.safetensors", "b", 2.0f);
  write_index(R"({"b":"two.safetensors","a":"one.safetensors"})");
  const Checkpoint checkpoint(folder_.path());
  EXPECT_EQ(checkpoint.read_as_f32("a"), std::vector<float>{1.0f});
  EXPECT_EQ(checkpoint.read_as_f32("b"), std::vector<float>{2.0f});
  EXPECT_EQ(checkpoint.at("b").file->path().filename(), "two.safetensors");
}

TEST_F(CheckpointTest, FollowsALinkAsTheHubsCacheHasThem) {
  const test::TemporaryFolder blobs;
  write_shard("model.safetensors", "a", 1.0f);
  fs::rename(folder_ / "model.safetensors", blobs / "blob");
  fs::create_symlink(blobs / "blob", folder_ / "model.safetensors");
  EXPECT_TRUE(Checkpoint(folder_.path()).has("a"));
}

TEST_F(CheckpointTest, RefusesAnIndexThatLeadsAstray) {
  write_shard("one.safetensors", "a", 1.0f);
  write_index(R"({"a":"one.safetensors","b":"one.safetensors"})");
  refuse("one.safetensors", "no tensor b");
  write_index(R"({"a":"missing.safetensors"})");
  refuse("missing.safetensors", "No such file");
  for (const auto* name :
       {"../one.safetensors", "/etc/passwd", "x/one.safetensors", "..", "", "x\\\\one", "one\\u0000"}) {
    write_index(std::string(R"({"a":")") + name + "\"}");
    refuse("index.json: weight_map", "\"a\"", "a file in the folder itself");
  }
  write_index(R"({"a":"one.safetensors","a":"one.safetensors"})");
  refuse("comes twice");
  write_index(R"({"a":1})");
  refuse("\"a\" must be a string");
  write_index("null");
  refuse("\"weight_map\"", "absent");
}

TEST_F(CheckpointTest, SaysWhatIsLacking) {
  refuse("neither model.safetensors nor model.safetensors.index.json");
  expect_error<DataError>([&] { Checkpoint checkpoint(folder_ / "no"); }, "not a folder");
  fs::create_symlink("loop", folder_ / "loop");
  expect_error<DataError>([&] { Checkpoint checkpoint(folder_ / "loop"); }, "not a folder");
  fs::create_symlink("model.safetensors", folder_ / "model.safetensors");
  refuse("model.safetensors", "Too many levels of symbolic links");
}

}  // namespace
}  // namespace nibble::checkpoint_test
