#include "nibble/base/error.h"
#include "nibble/weights/checkpoint_check.h"
#include "nibble/weights/merge.h"
#include "tests/support/files.h"

#include <cmath>

namespace nibble::expert_merge_test {
namespace {

const fs::path golden = test::source_path("tests/golden/qwen3-moe");

// Each expert's update goes to its own matrix, and all else stays.
TEST(MergeExperts, AddsEachExpertsUpdate) {
  const test::TemporaryFolder folder;
  merge({.model = golden / "model", .output = folder / "m", .adapters = {{golden / "adapter_nonzero"}}, .dtype = DType::f32});
  const auto config = read_model_config(golden / "model");
  const SafetensorsFile adapter(golden / "adapter_nonzero/adapter_model.safetensors");
  const double scaling = read_lora_config(golden / "adapter_nonzero").scaling();
  const Checkpoint base(golden / "model"), found(folder / "m");
  ASSERT_EQ(found.tensors().size(), base.tensors().size());
  std::size_t adapted = 0;
  for (const BaseTensor& tensor : base_tensors(config)) {
    const auto before = base.read_as_f32(tensor.name), after = found.read_as_f32(tensor.name);
    const std::string module = "base_model.model." + tensor.name.substr(0, tensor.name.rfind('.'));
    const TensorInfo* stored = adapter.find(module + ".lora_A.weight");
    if (!stored) {
      EXPECT_EQ(after, before) << tensor.name;
      continue;
    }
    ++adapted;
    const auto a = adapter.read_as_f32(module + ".lora_A.weight"), b = adapter.read_as_f32(module + ".lora_B.weight");
    const auto rank = static_cast<std::size_t>(stored->shape[0]), columns = static_cast<std::size_t>(tensor.shape[1]);
    for (std::size_t i = 0; i < before.size(); ++i) {
      double update = 0;
      for (std::size_t r = 0; r < rank; ++r) update += double{b[i / columns * rank + r]} * a[r * columns + i % columns];
      ASSERT_NEAR(after[i], before[i] + scaling * update, 1e-6) << tensor.name << " " << i;  // f32 sums of few values below 1
    }
  }
  EXPECT_EQ(adapted, 2 * (4 + 3 * 4));
}

}  // namespace
}  // namespace nibble::expert_merge_test
