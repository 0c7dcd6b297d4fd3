#include "nibble/kernels/lora_few.h"

#include "nibble/kernels/lora_matrix.h"
#include "tests/support/gpu_test.h"

namespace nibble::lora_few_test {
namespace {

class LoraFew : public testing::Test {
 protected:
  void SetUp() override {
    if (test::must_skip(lora_matrix_fits(test::device(), {.rank = 16, .inputs = 64, .outputs = {16}}))) GTEST_SKIP() << "The adapter has no matrices.";
  }
};

// The values that the kernel reads, in double.
TEST_F(LoraFew, DownEqualsTheFormula) {
  const LoraGroupShape three{.rank = 16, .inputs = 2568, .outputs = {64, 16, 16}}, two{.rank = 4, .inputs = 24, .outputs = {40, 8}},
      one{.rank = 40, .inputs = 4096, .outputs = {8}};
  for (const LoraGroupShape& shape : {three, two, one}) {
    for (const std::uint32_t rows : {1u, 5u, 8u, 37u, 64u}) {
      LoraGroup group{.shape = shape};
      const std::uint32_t width = shape.width(), inputs = shape.inputs;
      group.a = test::upload(test::random_values(std::size_t{width} * inputs, 3, 20.0f), {width, inputs}, DType::f16);
      const Tensor x = test::upload(test::random_values(std::size_t{rows} * inputs, 4, 500.0f), {rows, inputs}, DType::f16);
      test::GuardedTensor h(DType::f16, {rows, width});
      test::run(LoraDownFew{.group = group, .x = x, .h = h.tensor()});
      const std::vector<float> left = test::download(x), right = test::download(group.a);
      std::vector<float> expected;
      for (std::uint32_t t = 0; t < rows; ++t) {
        for (std::uint32_t c = 0; c < width; ++c) {
          double sum = 0;
          for (std::uint32_t k = 0; k < inputs; ++k) sum += double{left[t * inputs + k]} * right[c * inputs + k];
          expected.push_back(static_cast<float>(sum * 0x1p-12));
        }
      }
      EXPECT_LE(test::relative_error(test::download(h.tensor()), expected), 0x1p-11 + inputs * 0x1p-24) << rows << " rows of " << inputs;
      h.expect_guards_intact();
    }
  }
}

TEST_F(LoraFew, AnAdapterThatIsNotThereGivesZeros) {
  const LoraGroupShape shape{.rank = 16, .inputs = 64, .outputs = {16, 16}};
  LoraGroupMasters masters{.shape = shape, .projections = {{}, {}}};
  masters.projections[1] = {.a = test::upload(test::random_values(16 * 64, 5), {16, 64}), .b = test::upload(test::random_values(16 * 16, 6), {16, 16})};
  const LoraPack pack = make_lora_pack(test::device(), std::span(&masters, 1));
  test::run(pack);
  const Tensor x = test::upload(test::random_values(3 * 64, 7), {3, 64}, DType::f16), h = test::device().tensor(DType::f16, {3, 32}, "h");
  test::run(LoraDownFew{.group = pack.groups[0], .x = x, .h = h});
  const std::vector<float> values = test::download(h);
  for (std::size_t i = 0; i < values.size(); ++i) EXPECT_EQ(values[i] == 0.0f, i % 32 < 16) << i;
}

}  // namespace
}  // namespace nibble::lora_few_test
