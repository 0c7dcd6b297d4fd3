#include "nibble/weights/fused_experts.h"

#include "nibble/base/error.h"
#include "nibble/weights/checkpoint_check.h"
#include "nibble/weights/gguf_model.h"
#include "nibble/weights/merge.h"
#include "tests/support/files.h"

#include <fstream>

namespace nibble::fused_experts_test {
namespace {

using test::expect_error;

// The golden mixture of experts, and the same weights as transformers 5 saves them with save_original_format=False.
const fs::path golden = test::source_path("tests/golden/qwen3-moe/model");
const fs::path fused = test::source_path("tests/golden/qwen3-moe/fused");

TEST(FusedExperts, AreThoseOfFilesThatHaveThemOneByOne) {
  const ModelConfig config = read_model_config(fused);
  const Checkpoint one_by_one(golden), read = open_checkpoint(fused, config);
  ASSERT_FALSE(Checkpoint(fused).has("model.layers.0.mlp.experts.0.up_proj.weight"));
  check_checkpoint(read, config);
  ASSERT_EQ(read.tensors().size(), one_by_one.tensors().size());
  for (const BaseTensor& tensor : base_tensors(config)) {
    EXPECT_EQ(read.at(tensor.name).tensor->dtype, DType::bf16);
    EXPECT_EQ(read.read_as_f32(tensor.name), one_by_one.read_as_f32(tensor.name)) << tensor.name;
  }
  std::vector<std::byte> part(6), whole(2 * 8 * 64);
  const std::string name = "model.layers.1.mlp.experts.2.up_proj.weight";
  read.read(name, 20, part);
  one_by_one.read(name, 0, whole);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + 20));
  EXPECT_THROW(read.read(name, whole.size() - 4, part), std::exception);
}

TEST(FusedExperts, AreMergedIntoFilesOfEach) {
  const test::TemporaryFolder folder;
  const fs::path adapter = test::source_path("tests/golden/qwen3-moe/adapter_nonzero");
  merge({.model = golden, .output = folder / "one", .adapters = {{adapter}}});
  merge({.model = fused, .output = folder / "fused", .adapters = {{adapter}}});
  EXPECT_TRUE(test::slurp(folder / "one/model.safetensors") == test::slurp(folder / "fused/model.safetensors"));
}

// A folder with the tensors of the fused one but for what `change` makes of them.
struct Changed {
  std::map<std::string, TensorSpec> specs;
  std::map<std::string, std::vector<std::byte>> bytes;
  test::TemporaryFolder folder;

  Changed() {
    const Checkpoint source(fused);
    for (const auto& [name, entry] : source.tensors()) {
      specs[name] = {name, *entry.tensor->dtype, entry.tensor->shape};
      bytes[name].resize(entry.tensor->bytes);
      source.read(name, 0, bytes[name]);
    }
    fs::copy_file(fused / "config.json", folder / "config.json");
  }
  void open() {
    std::vector<TensorSpec> all;
    for (const auto& [name, spec] : specs) all.push_back(spec);
    SafetensorsWriter writer(folder / "model.safetensors", all);
    for (const TensorSpec& spec : writer.tensors()) writer.append(bytes[spec.name]);
    writer.finish();
    const ModelConfig config = read_model_config(folder.path());
    check_checkpoint(open_checkpoint(folder.path(), config), config);
  }
};

TEST(FusedExperts, AreRefusedByNameWhereTheyDoNotFit) {
  const std::string gate_up = "model.layers.1.mlp.experts.gate_up_proj", down = "model.layers.0.mlp.experts.down_proj";
  EXPECT_NO_THROW(Changed().open());
  Changed turned;
  turned.specs[gate_up].shape = {4, 64, 16};
  expect_error<DataError>([&] { turned.open(); }, "model.safetensors", gate_up, "[4, 64, 16]", "[4, 16, 64]");
  Changed flat;
  flat.specs[down].shape = {256, 8};
  expect_error<DataError>([&] { flat.open(); }, "model.safetensors", down, "[256, 8]", "[4, 64, 8]");
  Changed missing;
  missing.specs.erase(down);
  expect_error<DataError>([&] { missing.open(); }, "model.layers.0.mlp.experts.0.down_proj.weight", "is missing");
  Changed twice;
  const std::string own = "model.layers.0.mlp.experts.3.down_proj.weight";
  twice.specs[own] = {own, DType::bf16, {64, 8}};
  twice.bytes[own].resize(1024);
  expect_error<DataError>([&] { twice.open(); }, "Both", down, own);
}

// Scales would lie beside them in a form of their own.
TEST(FusedExperts, AreRefusedInEightBits) {
  const test::TemporaryFolder folder;
  fs::copy_file(fused / "config.json", folder / "config.json");
  std::string header = R"({"model.layers.0.mlp.experts.gate_up_proj":{"dtype":"F8_E4M3","shape":[4,16,64],"data_offsets":[0,4096]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string length(8, '\0');
  length[0] = static_cast<char>(header.size());
  folder.write("model.safetensors", length + header + std::string(4096, '\0'));
  const ModelConfig config = read_model_config(folder.path());
  expect_error<DataError>([&] { open_checkpoint(folder.path(), config); }, "model.safetensors", "gate_up_proj is F8_E4M3", "read one by one");
}

}  // namespace
}  // namespace nibble::fused_experts_test
