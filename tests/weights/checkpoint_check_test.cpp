#include "nibble/weights/checkpoint_check.h"

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "tests/support/files.h"

namespace nibble::checkpoint_check_test {
namespace {

using test::expect_error;

ModelConfig small_config() {
  return {.model_type = "qwen3",
          .hidden_size = 8,
          .num_layers = 2,
          .vocab_size = 16,
          .num_heads = 4,
          .num_kv_heads = 2,
          .head_dim = 4,
          .intermediate_size = 12};
}

class CheckpointCheck : public testing::Test {
 protected:
  void write(const std::vector<BaseTensor>& tensors, DType dtype = DType::bf16) {
    std::vector<TensorSpec> specs;
    for (const auto& tensor : tensors) specs.push_back({tensor.name, dtype, tensor.shape});
    SafetensorsWriter writer(folder_ / "model.safetensors", specs);
    for (const auto& spec : writer.tensors()) {
      std::size_t bytes = size_of(spec.dtype);
      for (const auto size : spec.shape) bytes *= static_cast<std::size_t>(size);
      writer.append(std::vector<std::byte>(bytes));
    }
    writer.finish();
  }
  void check() { check_checkpoint(Checkpoint(folder_.path()), config_); }

  test::TemporaryFolder folder_;
  ModelConfig config_ = small_config();
};

TEST_F(CheckpointCheck, TakesTheTinyModel) {
  const auto folder = test::source_path("models/tiny-qwen3");
  const auto config = read_model_config(folder);
  EXPECT_EQ(base_tensors(config).size(), Checkpoint(folder).tensors().size());
  EXPECT_NO_THROW(check_checkpoint(Checkpoint(folder), config));
}

// A matrix for each expert, and the router, which stays as it is.
TEST_F(CheckpointCheck, TakesMixturesOfExperts) {
  const auto folder = test::source_path("tests/golden/qwen3-moe/model");
  const auto config = read_model_config(folder);
  const auto tensors = base_tensors(config);
  EXPECT_EQ(tensors.size(), Checkpoint(folder).tensors().size());
  EXPECT_NO_THROW(check_checkpoint(Checkpoint(folder), config));
  const auto router = std::find_if(tensors.begin(), tensors.end(), [](const auto& t) { return t.name == "model.layers.1.mlp.gate.weight"; });
  ASSERT_NE(router, tensors.end());
  EXPECT_EQ(router->shape, (Shape{4, 64}));
  EXPECT_FALSE(is_projection(router->name, router->shape));
  EXPECT_TRUE(is_projection("model.layers.1.mlp.experts.0.gate_proj.weight", {8, 64}));
  write(tensors);
  config_ = config;
  EXPECT_NO_THROW(check());
  for (const std::string& name : {router->name, std::string("model.layers.0.mlp.experts.3.down_proj.weight")}) {
    auto without = tensors;
    std::erase_if(without, [&](const auto& tensor) { return tensor.name == name; });
    write(without);
    expect_error<DataError>([&] { check(); }, name, "missing");
  }
}

TEST_F(CheckpointCheck, NamesEachTensorThatIsMissing) {
  const auto whole = base_tensors(config_);
  EXPECT_EQ(whole.size(), 2 * 11 + 3);
  write(whole);
  EXPECT_NO_THROW(check());
  for (std::size_t i = 0; i < whole.size(); ++i) {
    auto tensors = whole;
    tensors.erase(tensors.begin() + static_cast<std::ptrdiff_t>(i));
    write(tensors);
    expect_error<DataError>([&] { check(); }, folder_.path().string(), whole[i].name, to_string(whole[i].shape),
                            "missing");
  }
}

TEST_F(CheckpointCheck, NamesExpectedAndFoundShapes) {
  const auto whole = base_tensors(config_);
  for (std::size_t i = 0; i < whole.size(); ++i) {
    auto tensors = whole;
    tensors[i].shape.back() += 1;
    write(tensors);
    expect_error<DataError>([&] { check(); }, "model.safetensors", whole[i].name, to_string(tensors[i].shape),
                            "makes it " + to_string(whole[i].shape));
  }
}

TEST_F(CheckpointCheck, ATiedHeadMayBeAbsentOrThere) {
  auto tensors = base_tensors(config_);
  config_.tie_word_embeddings = true;
  write(tensors);
  EXPECT_NO_THROW(check());
  tensors.pop_back();
  write(tensors);
  EXPECT_NO_THROW(check());
}

TEST_F(CheckpointCheck, RefusesOtherTypes) {
  write(base_tensors(config_), DType::u8);
  expect_error<DataError>([&] { check(); }, "model.embed_tokens.weight is U8");
}

TEST_F(CheckpointCheck, SaysWhatItLeavesOut) {
  std::string said;
  set_log_hook([&](LogLevel, std::string_view message) { said += message; });
  auto tensors = base_tensors(config_);
  tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", {2}});
  write(tensors);
  check();
  EXPECT_EQ(said, "");
  tensors.push_back({"model.layers.0.self_attn.q_proj.bias", {16}});
  write(tensors);
  check();
  set_log_hook({});
  EXPECT_NE(said.find("1 tensors"), said.npos);
  EXPECT_NE(said.find("q_proj.bias"), said.npos);
}

}  // namespace
}  // namespace nibble::checkpoint_check_test
