#include "nibble/weights/load_check.h"

#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

namespace nibble {
namespace {

using test::device;

class LoadedWeights : public testing::TestWithParam<DType> {
 protected:
  const std::filesystem::path model = test::source_path("models/tiny-qwen3");
  const Checkpoint checkpoint{model};
  const DeviceWeights weights = load_weights(device(), checkpoint, read_model_config(model), {.dense_dtype = GetParam()});
};

INSTANTIATE_TEST_SUITE_P(Dense, LoadedWeights, testing::Values(DType::f32, DType::f16),
                         [](const auto& type) { return std::string(name_of(type.param)); });

TEST_P(LoadedWeights, AreThoseOfTheFile) {
  const LoadCheck check = check_loaded(device(), checkpoint, weights);
  EXPECT_TRUE(check.passed());
  EXPECT_EQ(check.blocks, 4u * 7 * 3 * 64);
  EXPECT_EQ(check.values, 3u * 4 * 256);
}

TEST_P(LoadedWeights, AreRefusedWhereOneCodeOrScaleOrValueDiffers) {
  const auto spoil = [](const gpu::Tensor& tensor, std::uint64_t word) {
    auto words = device().read<std::uint32_t>(tensor);
    words[word] ^= 0x10u;
    device().write(tensor, std::as_bytes(std::span(words)));
  };
  const Nf4Matrix& last = weights.layers[3].projection(Projection::down);
  spoil(last.packed, last.packed.size() - 1);
  EXPECT_EQ(check_loaded(device(), checkpoint, weights).wrong_blocks, 1u);
  spoil(weights.layers[0].projection(Projection::q).absmax, 63);
  EXPECT_EQ(check_loaded(device(), checkpoint, weights).wrong_blocks, 2u);
  spoil(weights.embedding.data, 0);
  const LoadCheck check = check_loaded(device(), checkpoint, weights);
  EXPECT_EQ(check.wrong_values, 1u);
  EXPECT_FALSE(check.passed());
}

TEST(LoadedNf4, OfAQuantisedFolderAreItsCodesAndScales) {
  const std::filesystem::path model = test::source_path("tests/golden/bnb/model");
  const Checkpoint checkpoint(model);
  const DeviceWeights weights = load_weights(device(), checkpoint, read_model_config(model), {.dense_dtype = DType::f32});
  const LoadCheck check = check_loaded(device(), checkpoint, weights);
  EXPECT_TRUE(check.passed());
  EXPECT_EQ(check.blocks, 4u * 7 * 3 * 64);
  const gpu::Tensor& absmax = weights.layers[2].projection(Projection::v).absmax;
  auto words = device().read<std::uint32_t>(absmax);
  words[0] ^= 1u;
  device().write(absmax, std::as_bytes(std::span(words)));
  EXPECT_EQ(check_loaded(device(), checkpoint, weights).wrong_blocks, 1u);
}

TEST_P(LoadedWeights, TakeTheTimesThatTheyAreAskedFor) {
  LoadTimes times;
  load_weights(device(), checkpoint, read_model_config(model), {.dense_dtype = GetParam(), .times = &times});
  for (const double seconds : {times.read, times.quantize, times.dense, times.upload}) EXPECT_GT(seconds, 0);
}

}  // namespace
}  // namespace nibble
