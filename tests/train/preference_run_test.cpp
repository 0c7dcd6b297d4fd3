#include "nibble/train/preference.h"
#include "tests/train/golden_run.h"

namespace nibble::preference_run_test {
namespace {

TrainOptions pair_options(const std::filesystem::path& output) {
  TrainOptions options{.model = test::source_path("models/tiny-qwen3"), .output = output,
                       .data = test::source_path("examples/preference/train.jsonl"),
                       .valid = test::source_path("examples/preference/valid.jsonl")};
  options.init_adapter = test::source_path("tests/golden/tiny/adapter_trained");
  options.loss = {.kind = TrainLoss::dpo, .beta = 0.3};
  options.learning_rate = 1e-3;
  options.save_every = 0;
  options.eval_every = 0;
  return options;
}

double accuracy_before(const TrainOptions& options) {
  const auto data = open_run_data(options);
  const BatchRoom room = room_of(data->valid, evaluation_batches(data->valid, options.batch_size));
  const ModelState state = ModelState::load(test::device(), options.model,
                                            {.path = ProductPath::f32, .adapter = options.init_adapter, .trainable = false});
  Model model(state, {.max_tokens = room.tokens, .max_labels = room.labels, .trainable = false});
  data->valid.reference = reference_logps(model, data->valid, options.batch_size);
  return evaluate_pairs(model, data->valid, options.loss, options.batch_size).mean.rewards_accuracies;
}

// examples/preference: one epoch over 400 pairs, judged on the pairs of 100 other words.
TEST(PreferenceRun, DpoLiftsTheAccuracyOnOtherWords) {
  const test::TemporaryFolder folder;
  const TrainOptions options = pair_options(folder / "run");
  EXPECT_LT(accuracy_before(options), 0.88);
  const test::TrainedCurve curve = test::train_curve(options, ProductPath::f32);
  ASSERT_EQ(curve.steps.size(), 50u);
  EXPECT_EQ(curve.plan.train_examples, 400u);
  EXPECT_GT(curve.evaluations.back().preference.value().rewards_accuracies, 0.9);
  EXPECT_GT(curve.evaluations.back().preference->rewards_margins, 2.0);
}

}  // namespace
}  // namespace nibble::preference_run_test
