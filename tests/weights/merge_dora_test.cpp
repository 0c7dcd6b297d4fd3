#include <cmath>

#include "nibble/base/error.h"
#include "nibble/quant/nf4.h"
#include "nibble/weights/merge.h"
#include "nibble/weights/peft.h"
#include "tests/support/files.h"

namespace nibble::merge_dora_test {
namespace {

const fs::path tiny = test::source_path("models/tiny-qwen3");
const fs::path dora = test::source_path("tests/golden/dora/adapter_nonzero");

std::vector<float> through_nf4(const std::vector<float>& values) {
  std::vector<std::uint8_t> packed(nf4_packed_bytes(values.size()));
  std::vector<float> absmax(nf4_blocks(values.size())), result(values.size());
  nf4_quantize(DType::f32, std::as_bytes(std::span(values)), packed, absmax);
  nf4_dequantize(packed, absmax, result);
  return result;
}

// magnitude / ||row|| * row of W + scaling * B A, in double.
std::vector<double> reference(const std::vector<float>& w, std::size_t columns, const LoraMatrices& lora, double scaling) {
  const std::size_t rank = lora.a.size() / columns;
  std::vector<double> sum(w.begin(), w.end());
  for (std::size_t row = 0; row * columns < w.size(); ++row) {
    double squares = 0;
    for (std::size_t i = row * columns; i < (row + 1) * columns; ++i) {
      for (std::size_t k = 0; k < rank; ++k) sum[i] += scaling * lora.b[row * rank + k] * lora.a[k * columns + i % columns];
      squares += sum[i] * sum[i];
    }
    for (std::size_t i = row * columns; i < (row + 1) * columns; ++i) sum[i] *= lora.magnitude[row] / std::sqrt(squares);
  }
  return sum;
}

// Where a layer has no adapter the base stays as it is.
TEST(MergeDora, BringsRowsToTheirLength) {
  const test::TemporaryFolder folder;
  const auto adapter = load_lora_adapter(dora, read_model_config(tiny));
  const Checkpoint base(tiny);
  for (const auto onto : {MergeBase::original, MergeBase::nf4}) {
    const auto base_of = [&](const std::string& name) {
      const auto w = base.read_as_f32(name);
      return onto == MergeBase::nf4 ? through_nf4(w) : w;
    };
    const MergeResult result = merge({.model = tiny, .output = folder / "m", .adapters = {{dora}}, .dtype = DType::f32, .onto = onto, .overwrite = true});
    const Checkpoint found(folder / "m");
    double update = 0;
    for (const Projection p : all_projections) {
      const std::string name = projection_tensor_name(2, p);
      SCOPED_TRACE(name);
      const auto w = base_of(name), values = found.read_as_f32(name);
      const auto columns = static_cast<std::size_t>(base.at(name).tensor->shape[1]);
      const auto expected = reference(w, columns, adapter.at(2, p), adapter.modules()[2][static_cast<std::size_t>(p)].scaling);
      for (std::size_t i = 0; i < w.size(); ++i) {
        ASSERT_NEAR(values[i], expected[i], 1e-6 * std::abs(expected[i]) + 1e-7) << i;  // a product of f32 that nearly takes W out
        update += std::pow(double{values[i]} - w[i], 2);
      }
      EXPECT_EQ(found.read_as_f32(projection_tensor_name(1, p)), base_of(projection_tensor_name(1, p)));
    }
    EXPECT_NEAR(result.norms.update, update, 1e-4 * update);
  }
}

TEST(MergeDora, StandsAlone) {
  const test::TemporaryFolder folder;
  const fs::path other = test::source_path("tests/golden/tiny/adapter_nonzero");
  for (const auto& adapters : {std::vector<MergeAdapter>{{dora, 0.5}}, {{dora}, {other}}, {{other}, {dora}}}) {
    test::expect_error<UsageError>([&] { merge({.model = tiny, .output = folder / "x", .adapters = adapters}); }, "use_dora", "alone");
  }
}

}  // namespace
}  // namespace nibble::merge_dora_test
