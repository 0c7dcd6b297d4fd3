#include "nibble/base/error.h"
#include "nibble/io/safetensors.h"
#include "nibble/train/trainer.h"
#include "tests/train/golden_run.h"

#include <cmath>
#include <memory>

// Runs with the adapters' moments of either kind in either place.
namespace nibble::adapter_moments_test {
namespace {

namespace fs = std::filesystem;

struct MomentsRun {
  test::TrainedCurve curve;
  test::TemporaryFolder folder;

  fs::path output() const { return folder / "run"; }
  fs::path checkpoint() const { return output() / fmt::format("checkpoint-{}", curve.steps.size()); }
  std::string adapter() const { return test::slurp(output() / "adapter_model.safetensors"); }
  std::string optimizer() const { return test::slurp(checkpoint() / "optimizer.safetensors"); }
};

std::unique_ptr<MomentsRun> run(TrainOptions options) {
  auto result = std::make_unique<MomentsRun>();
  options.output = result->output();
  result->curve = test::train_curve(options, ProductPath::f32);
  return result;
}

// Rank 3 with DoRA: matrices and magnitudes end within blocks of 256.
TrainOptions odd_options(MomentKind kind, MemoryPlace place) {
  static const test::TemporaryFolder folder;
  TrainOptions options = test::golden_options({});
  options.init_adapter.clear();
  options.lora.rank = 3;
  options.lora.use_dora = true;
  options.adamw.loraplus_ratio = 4;
  options.data = test::first_rows(folder, "train.jsonl", 32);
  options.batch_size = 2;
  options.max_steps = 4;
  options.lora_moments = kind;
  options.lora_state = place;
  return options;
}

TEST(AdapterMoments, HostAndDeviceGiveTheSameBytes) {
  std::string of_f32;
  for (const MomentKind kind : {MomentKind::f32, MomentKind::eight_bit}) {
    SCOPED_TRACE(name_of(kind));
    const auto device = run(odd_options(kind, MemoryPlace::device)), host = run(odd_options(kind, MemoryPlace::host));
    EXPECT_TRUE(device->adapter() == host->adapter());
    EXPECT_TRUE(device->optimizer() == host->optimizer());
    EXPECT_EQ(device->curve.plan.memory.host_moments, 0u);
    EXPECT_GT(host->curve.plan.memory.host_moments, 0u);
    if (kind == MomentKind::f32) of_f32 = device->adapter();
    EXPECT_EQ(device->adapter() == of_f32, kind == MomentKind::f32);
  }
}

// The golden curve; with moments of 8 bits each step's loss stays within this of that with f32, relative: four times what was
// measured (docs/numerics.md).
TEST(AdapterMoments, OfEightBitsLearnAlike) {
  constexpr double bar = 1e-3;
  TrainOptions options = test::golden_options({});
  options.max_steps = 40;
  const auto exact = run(options);
  options.lora_moments = MomentKind::eight_bit;
  const auto rounded = run(options);
  ASSERT_EQ(exact->curve.steps.size(), rounded->curve.steps.size());
  double worst = 0;
  for (std::size_t i = 0; i < exact->curve.steps.size(); ++i) {
    worst = std::max(worst, std::abs(rounded->curve.steps[i].loss / exact->curve.steps[i].loss - 1));
  }
  EXPECT_LT(worst, bar);
  EXPECT_GT(worst, 0.0);
  RecordProperty("worst_loss_difference", std::to_string(worst));
  EXPECT_LT(rounded->curve.plan.memory.adapters, exact->curve.plan.memory.adapters / 10 * 7);
}

// A quarter of f32's bytes and a scale for 256.
TEST(AdapterMoments, OfEightBitsAreSoInACheckpoint) {
  const auto rounded = run(odd_options(MomentKind::eight_bit, MemoryPlace::device));
  const SafetensorsFile file(rounded->checkpoint() / "optimizer.safetensors");
  const std::string a = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight";
  for (const std::string kind : {"exp_avg.", "exp_avg_sq."}) {
    EXPECT_EQ(file.at(kind + a).dtype_name, "U8");
    EXPECT_EQ(file.at(kind + a).shape, Shape{3 * 256});
    EXPECT_EQ(file.at(kind + a + ".absmax").shape, Shape{3});
    EXPECT_EQ(file.at(kind + "base_model.model.model.layers.1.self_attn.k_proj.lora_magnitude_vector").shape, Shape{128});
  }
}

// Also where a checkpoint was made before its run said of which kind they are.
TEST(AdapterMoments, OfAnotherKindAreNotGoneOnWith) {
  const auto exact = run(odd_options(MomentKind::f32, MemoryPlace::device));
  TrainOptions options = odd_options(MomentKind::eight_bit, MemoryPlace::device);
  options.output = exact->output();
  options.resume = exact->checkpoint();
  test::expect_error<UsageError>([&] { test::train_curve(options, ProductPath::f32); }, "lora_moments", "f32", "8bit");
  Json state = read_json_file(exact->checkpoint() / "trainer_state.json");
  ASSERT_EQ(state["nibble"]["fingerprint"].erase("lora_moments"), 1u);
  std::ofstream(exact->checkpoint() / "trainer_state.json") << state.dump();
  test::expect_error<DataError>([&] { test::train_curve(options, ProductPath::f32); }, "optimizer.safetensors", "F32", "U8");
}

// Values of 8 bits read as f32, by a program or from the one-file checkpoint, are the same codes again.
TEST(AdapterMoments, OfEightBitsGoThroughTheHostAndOneFile) {
  const auto load = [](MomentKind kind) {
    return ModelState::load(test::device(), test::source_path("models/tiny-qwen3"),
                            {.path = ProductPath::f32, .lora = LoraConfig{.rank = 3}, .moments = {.kind = kind}});
  };
  const std::vector<std::uint32_t> tokens = {5, 17, 300, 4000, 1, 2, 3}, position = {0, 1, 2, 3, 4, 5, 6}, begin(7, 0), end(7, 7),
                                   rows = {0, 1, 2, 3, 4, 5}, labels = {17, 300, 4000, 1, 2, 3};
  const TokenStream stream{.tokens = tokens, .position = position, .segment_begin = begin, .segment_end = end, .label_rows = rows,
                           .labels = labels};
  const auto train = [&](ModelState& state, int steps) {
    Trainer trainer(state, {.model = {.max_tokens = 16, .max_labels = 16}});
    for (int i = 0; i < steps; ++i) trainer.full_train_step(std::span(&stream, 1), 1e-2);
  };
  ModelState whole = load(MomentKind::eight_bit), edited = load(MomentKind::eight_bit);
  train(whole, 3);
  train(edited, 2);
  const test::TemporaryFolder folder;
  const auto path = edited.save_checkpoint(folder.path(), 2, 1.0);
  edited.edit_lora();
  train(edited, 1);
  ModelState loaded = load(MomentKind::eight_bit);
  loaded.load_checkpoint(path);
  train(loaded, 1);
  const auto same = [&](const ModelState& other) {
    for (std::uint32_t layer = 0; layer < whole.num_layers(); ++layer) {
      for (const Projection p : all_projections) {
        const LoraProjection &a = whole.lora()[layer].at(p), &b = other.lora()[layer].at(p);
        EXPECT_TRUE(a.a == b.a && a.b == b.b && a.m_a == b.m_a && a.v_a == b.v_a && a.m_b == b.m_b && a.v_b == b.v_b);
      }
    }
  };
  same(edited);
  same(loaded);
  ModelState exact = load(MomentKind::f32);
  exact.load_checkpoint(path);
  train(exact, 1);
  EXPECT_NE(exact.lora()[0].q.m_a, whole.lora()[0].q.m_a) << "where nothing is rounded";
}

}  // namespace
}  // namespace nibble::adapter_moments_test
