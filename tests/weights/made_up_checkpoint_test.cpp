#include "nibble/weights/made_up_checkpoint.h"

#include <cmath>

#include "nibble/base/error.h"
#include "nibble/io/checkpoint.h"
#include "nibble/weights/checkpoint_check.h"
#include "nibble/weights/shapes.h"
#include "tests/support/files.h"

namespace nibble::made_up_checkpoint_test {
namespace {

ModelConfig small_config(bool tied) {
  ModelConfig config = read_model_config(test::source_path("models/tiny-qwen3"));
  config.tie_word_embeddings = tied;
  return config;
}

TEST(MadeUpCheckpoint, IsAModelFolderThatFitsItsConfig) {
  for (const bool tied : {true, false}) {
    const test::TemporaryFolder folder;
    const ModelConfig config = small_config(tied);
    write_made_up_checkpoint(folder.path(), config, 3'000'000);
    const ModelConfig read = read_model_config(folder.path());
    EXPECT_EQ(read.intermediate_size, config.intermediate_size);
    EXPECT_EQ(read.num_kv_heads, config.num_kv_heads);
    EXPECT_EQ(read.rope.theta, config.rope.theta);
    EXPECT_EQ(read.tie_word_embeddings, tied);
    const Checkpoint checkpoint(folder.path());
    check_checkpoint(checkpoint, read);
    EXPECT_EQ(checkpoint.tensors().size(), base_tensors(config).size());
    EXPECT_EQ(checkpoint.total_bytes(), checkpoint_bytes(config));
    EXPECT_TRUE(std::filesystem::exists(folder / "model.safetensors.index.json"));
  }
}

TEST(MadeUpCheckpoint, HasRowsThatDiffer) {
  const test::TemporaryFolder folder;
  const ModelConfig config = small_config(true);
  write_made_up_checkpoint(folder.path(), config);
  const auto values = Checkpoint(folder.path()).read_as_f32(embedding_tensor_name);
  double squares = 0;
  for (const float value : values) squares += double{value} * double{value};
  EXPECT_NEAR(std::sqrt(squares / static_cast<double>(values.size())), 0.02, 1e-3);
  EXPECT_FALSE(std::equal(values.begin(), values.begin() + 256, values.begin() + 256));
}

TEST(MadeUpCheckpoint, RefusesADiskThatIsTooSmall) {
  const test::TemporaryFolder folder;
  ModelConfig config = shape_by_name("qwen3-8b");
  config.num_layers = 1 << 12;
  config.intermediate_size = 1 << 20;
  test::expect_error<DataError>([&] { write_made_up_checkpoint(folder.path(), config); }, "the disk has");
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace nibble::made_up_checkpoint_test
