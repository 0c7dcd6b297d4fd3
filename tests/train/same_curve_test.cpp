#include "nibble/base/error.h"
#include "tests/support/disk.h"
#include "tests/train/golden_run.h"

#include <algorithm>

namespace nibble::same_curve_test {
namespace {

constexpr std::uint64_t steps = 8;

test::TrainedCurve run(TrainOptions options, ProductPath path) {
  const test::TemporaryFolder folder;
  options.output = folder / "run";
  options.max_steps = steps;
  return test::train_curve(options, path);
}

// Sums in another order differ by f32 roundings; the learning rate of 0.002 lets them grow over the steps.
void expect_same(const test::TrainedCurve& a, const test::TrainedCurve& b) {
  ASSERT_EQ(a.steps.size(), b.steps.size());
  for (std::size_t i = 0; i < a.steps.size(); ++i) {
    EXPECT_NEAR(a.steps[i].loss / b.steps[i].loss, 1.0, 1e-4) << "step " << i + 1;
    EXPECT_EQ(a.steps[i].tokens, b.steps[i].tokens) << "step " << i + 1;
  }
}

// The run that all others are held against, made once.
const test::TrainedCurve& sixteen_rows() {
  static const test::TrainedCurve curve = run(test::golden_options({}), ProductPath::f32);
  return curve;
}

// The same with checkpointing, by itself and as the plan that chunks of the MLP make smaller.
const test::TrainedCurve& checkpointed_rows() {
  static const test::TrainedCurve curve = [] {
    TrainOptions options = test::golden_options({});
    options.gradient_checkpointing = Checkpointing::on;
    return run(options, ProductPath::f32);
  }();
  return curve;
}

TEST(SameCurve, ThroughAccumulation) {
  TrainOptions options = test::golden_options({});
  options.batch_size = 4;
  options.gradient_accumulation = 4;
  expect_same(run(options, ProductPath::f32), sixteen_rows());
}

TEST(SameCurve, WithGradientCheckpointing) {
  EXPECT_LT(checkpointed_rows().plan.memory.activations, sixteen_rows().plan.memory.activations);
  expect_same(checkpointed_rows(), sixteen_rows());
}

TEST(SameCurve, WithMlpsInChunks) {
  TrainOptions options = test::golden_options({});
  options.gradient_checkpointing = Checkpointing::on;
  options.mlp_chunk = 256;
  for (const ProductPath path : test::product_paths()) {
    const test::TrainedCurve curve = run(options, path);
    EXPECT_EQ(curve.plan.model.mlp_chunk, 256u);
    if (path == ProductPath::f32) {
      EXPECT_LT(curve.plan.memory.total(), checkpointed_rows().plan.memory.total());
      expect_same(curve, sixteen_rows());
    } else {
      options.mlp_chunk = 0;
      expect_same(curve, run(options, path));
      options.mlp_chunk = 256;
    }
  }
}

TEST(SameCurve, WithCachedWeights) {
  TrainOptions options = test::golden_options({});
  options.residency = Residency::cached;
  const test::TrainedCurve curve = run(options, ProductPath::f32);
  EXPECT_GT(curve.plan.memory.decoded_weights, sixteen_rows().plan.memory.decoded_weights);
  expect_same(curve, sixteen_rows());
}

// The same kernels read the same values.
TEST(SameCurve, WithStreamedWeights) {
  TrainOptions options = test::golden_options({});
  options.residency = Residency::streamed;
  const test::TrainedCurve all = run(options, ProductPath::f32);
  const MemoryPlan& plain = sixteen_rows().plan.memory;
  EXPECT_LT(all.plan.memory.frozen_weights, plain.frozen_weights);
  EXPECT_GT(all.plan.memory.host_weights, plain.frozen_weights - all.plan.memory.frozen_weights);  // beside what has slots
  options.stream_layers = 2;
  options.gradient_checkpointing = Checkpointing::on;
  const test::TrainedCurve two = run(options, ProductPath::f32);
  EXPECT_EQ(2 * two.plan.memory.host_weights, all.plan.memory.host_weights);
  for (std::uint64_t i = 0; i < steps; ++i) {
    EXPECT_EQ(all.steps[i].loss, sixteen_rows().steps[i].loss) << "step " << i + 1;
    EXPECT_EQ(two.steps[i].loss, sixteen_rows().steps[i].loss) << "step " << i + 1;
  }
  options.residency = Residency::cached;
  expect_same(run(options, ProductPath::f32), sixteen_rows());
  options.stream_layers = 5;
  EXPECT_THROW(run(options, ProductPath::f32), UsageError);
}

// Said, or taken by the plan where host memory is too small.
TEST(SameCurve, WithWeightsFromADisk) {
  const test::FolderOnDisk folder;
  TrainOptions options = test::golden_options({});
  options.residency = Residency::streamed;
  options.stream.folder = folder.path();
  const test::TrainedCurve in_ram = run(options, ProductPath::f32);
  options.stream.on_disk = true;
  const test::TrainedCurve said = run(options, ProductPath::f32);
  options.stream.on_disk = false;
  options.ram_limit.bytes = in_ram.plan.memory.host_total() - 1;
  const test::TrainedCurve planned = run(options, ProductPath::f32);
  EXPECT_TRUE(planned.plan.model.stream.on_disk);
  EXPECT_EQ(planned.plan.memory.disk_weights, said.plan.memory.disk_weights);
  EXPECT_GT(said.plan.memory.disk_weights, 0u);
  for (std::uint64_t i = 0; i < steps; ++i) {
    EXPECT_EQ(said.steps[i].loss, sixteen_rows().steps[i].loss) << "step " << i + 1;
    EXPECT_EQ(planned.steps[i].loss, sixteen_rows().steps[i].loss) << "step " << i + 1;
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

// Of the tied table rows are gathered and slices brought.
TEST(SameCurve, WithTheHeadOnTheHost) {
  TrainOptions options = test::golden_options({});
  options.stream.head = true;
  const test::TrainedCurve curve = run(options, ProductPath::f32);
  EXPECT_LT(curve.plan.memory.frozen_weights, sixteen_rows().plan.memory.frozen_weights);
  EXPECT_GT(curve.plan.memory.host_weights, 0u);
  expect_same(curve, sixteen_rows());
}

// Quantising the table changes the curve, in 8 bits hardly.
TEST(SameCurve, WithTheHeadInFewerBits) {
  for (const auto& [form, most] : {std::pair{TableForm::int8, 2e-2}, {TableForm::nf4, 0.2}}) {
    TrainOptions options = test::golden_options({});
    options.stream.tables = form;
    const test::TrainedCurve curve = run(options, ProductPath::f32);
    EXPECT_LT(curve.plan.memory.frozen_weights, sixteen_rows().plan.memory.frozen_weights);
    for (std::uint64_t i = 0; i < steps; ++i) EXPECT_NEAR(curve.steps[i].loss / sixteen_rows().steps[i].loss, 1.0, most) << "step " << i + 1;
    EXPECT_NE(curve.steps[0].loss, sixteen_rows().steps[0].loss);
  }
}

TEST(SameCurve, WithSmallHeadChunks) {
  TrainOptions options = test::golden_options({});
  options.head_chunk = 64;
  const test::TrainedCurve curve = run(options, ProductPath::f32);
  ASSERT_GT(curve.plan.room.labels, 64u);  // so that there are several chunks
  EXPECT_LT(curve.plan.memory.head, sixteen_rows().plan.memory.head);
  expect_same(curve, sixteen_rows());
}

// All rows make one update, packed in several streams that hold them in another order, or all in one.
TEST(SameCurve, WithPacking) {
  const test::TemporaryFolder folder;
  TrainOptions options = test::golden_options({});
  options.data = test::first_rows(folder, "train.jsonl", 24);
  options.batch_size = 24;
  const test::TrainedCurve whole = run(options, ProductPath::f32);
  options.packing = true;
  options.max_length = 128;
  options.batch_size = 2;
  options.gradient_accumulation = 100;
  const test::TrainedCurve packed = run(options, ProductPath::f32);
  EXPECT_LE(packed.plan.room.tokens, 256u);
  EXPECT_LT(packed.plan.room.tokens, whole.plan.room.tokens / 3);
  EXPECT_EQ(packed.steps.back().epoch, double{steps});
  expect_same(packed, whole);
}

// Of the paths with f16 operands, whose products do not depend on how rows share a batch either.
TEST(SameCurve, ThroughAccumulationInF16) {
  for (const ProductPath path : test::product_paths()) {
    if (path != ProductPath::f16) continue;
    TrainOptions options = test::golden_options({});
    const test::TrainedCurve whole = run(options, path);
    options.batch_size = 4;
    options.gradient_accumulation = 4;
    expect_same(run(options, path), whole);
  }
}

}  // namespace
}  // namespace nibble::same_curve_test
