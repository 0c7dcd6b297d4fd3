#include "nibble/weights/load_check.h"

#include "nibble/model/decode_layers.h"
#include "nibble/model/frozen_weights.h"
#include "nibble/quant/nf4.h"
#include "nibble/weights/bnb.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

namespace nibble::load_check_test {
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

// The golden folder with its codes taken for those of FP4, in all layers but for one matrix.
class Fp4Folder : public testing::Test {
 protected:
  Fp4Folder() {
    const fs::path golden = test::source_path("tests/golden/bnb/model");
    fs::copy_file(golden / "config.json", folder_ / "config.json");
    std::string text = test::slurp(golden / "model.safetensors");
    const auto replace = [&](const std::string& from, const std::string& to) {
      std::size_t count = 0;
      for (std::size_t at = text.find(from); at != text.npos; at = text.find(from, at + to.size()), ++count) text.replace(at, from.size(), to);
      return count;
    };
    EXPECT_EQ(replace("bitsandbytes__nf4", "bitsandbytes__fp4"), 28u);
    EXPECT_EQ(replace(R"("quant_type": "nf4")", R"("quant_type": "fp4")"), 28u);
    const auto bytes = [](const std::array<float, 16>& codes) { return std::string(reinterpret_cast<const char*>(codes.data()), sizeof codes); };
    EXPECT_EQ(replace(bytes(nf4_codes), bytes(fp4_codes)), 28u);
    folder_.write("model.safetensors", text);
  }

  const test::TemporaryFolder folder_;
};

TEST_F(Fp4Folder, IsComputedWithByItsOwnCodes) {
  const Checkpoint checkpoint(folder_.path());
  const ModelConfig config = read_model_config(folder_.path());
  DeviceWeights weights = load_weights(device(), checkpoint, config, {.dense_dtype = DType::f32});
  EXPECT_TRUE(check_loaded(device(), checkpoint, weights).passed());
  for (const Projection p : all_projections) {
    const Nf4Matrix& matrix = weights.layers[1].projection(p);
    ASSERT_EQ(matrix.codes, CodeBook::fp4);
    const auto bnb = bnb_matrix(checkpoint, projection_tensor_name(1, p), matrix.out, matrix.in);
    const std::size_t count = std::size_t{matrix.out} * matrix.in;
    std::vector<std::uint8_t> packed(nf4_packed_bytes(count));
    std::vector<float> absmax(nf4_blocks(count)), expected(count);
    read_bnb(*bnb, 0, packed, absmax);
    nf4_dequantize(packed, absmax, expected, {.codes = CodeBook::fp4});
    FrozenWeights frozen(device(), weights, config, ProductPath::f32, {}, false);
    gpu::Recorder recorder(device());
    const Weight decoded = frozen.projection(recorder, 1, p, nullptr);
    recorder.submit();
    EXPECT_EQ(test::download(decoded.data), expected) << name_of(p);
  }
  EXPECT_TRUE(DecodeLayers::fits(config, weights));
  weights.layers[2].projections[static_cast<std::size_t>(Projection::k)].codes = CodeBook::nf4;
  EXPECT_FALSE(DecodeLayers::fits(config, weights));
  EXPECT_FALSE(check_loaded(device(), checkpoint, weights).passed());
}

TEST_P(LoadedWeights, TakeTheTimesThatTheyAreAskedFor) {
  LoadTimes times;
  load_weights(device(), checkpoint, read_model_config(model), {.dense_dtype = GetParam(), .times = &times});
  for (const double seconds : {times.read, times.quantize, times.dense, times.upload}) EXPECT_GT(seconds, 0);
}

}  // namespace
}  // namespace nibble::load_check_test
