#include "nibble/base/error.h"
#include "nibble/io/safetensors.h"
#include "nibble/model/generator.h"
#include "nibble/train/trainer.h"
#include "tests/train/golden_run.h"

#include <cmath>
#include <memory>

// Runs that train the head.
namespace nibble::head_test {
namespace {

namespace fs = std::filesystem;

struct HeadRun {
  test::TrainedCurve curve;
  test::TemporaryFolder folder;

  fs::path output() const { return folder / "run"; }
  std::string adapter() const { return test::slurp(output() / "adapter_model.safetensors"); }
  std::string optimizer() const { return test::slurp(output() / fmt::format("checkpoint-{}/optimizer.safetensors", curve.steps.size())); }
};

// Few rows, so that a step is short.
TrainOptions options_of_head() {
  static const test::TemporaryFolder folder;
  TrainOptions options = test::golden_options({});
  options.data = test::first_rows(folder, "train.jsonl", 96);
  options.batch_size = 4;
  options.max_steps = 5;
  options.train_head = true;
  return options;
}

std::unique_ptr<HeadRun> run(TrainOptions options, ProductPath path = ProductPath::f32) {
  auto result = std::make_unique<HeadRun>();
  options.output = result->output();
  result->curve = test::train_curve(options, path);
  return result;
}

const HeadRun& plain_run() {
  static const std::unique_ptr<HeadRun> made = run(options_of_head());
  return *made;
}

void expect_same_curve(const test::TrainedCurve& a, const test::TrainedCurve& b, double tolerance) {
  ASSERT_EQ(a.steps.size(), b.steps.size());
  for (std::size_t i = 0; i < a.steps.size(); ++i) {
    EXPECT_NEAR(a.steps[i].loss / b.steps[i].loss, 1.0, tolerance) << "step " << i + 1;
  }
}

// Sums in another order differ by f32 roundings, which the learning rate of 0.002 lets grow.
TEST(HeadTraining, TheChunksOfRowsChangeNothing) {
  TrainOptions options = options_of_head();
  options.batch_size = 8;
  options.max_steps = 3;
  const auto whole = run(options);
  options.head_chunk = 64;
  const auto chunks = run(options);
  ASSERT_GT(chunks->curve.plan.room.labels, 64u);  // so that there are several
  expect_same_curve(chunks->curve, whole->curve, 1e-4);
}

TEST(HeadTraining, AccumulationGivesTheSameCurve) {
  TrainOptions options = options_of_head();
  options.batch_size = 2;
  options.gradient_accumulation = 2;
  expect_same_curve(run(options)->curve, plain_run().curve, 1e-4);
}

// Within what docs/numerics.md allows a step's loss with f16 operands.
TEST(HeadTraining, EveryPathGivesTheSameCurve) {
  for (const ProductPath path : test::product_paths()) {
    if (path == ProductPath::f32) continue;
    SCOPED_TRACE(test::name_of(path));
    expect_same_curve(run(options_of_head(), path)->curve, plain_run().curve, 2e-3);
  }
}

TEST(HeadTraining, HostAndDeviceGiveTheSameBytes) {
  for (const ProductPath path : test::product_paths()) {
    if (path == ProductPath::matrix) continue;
    for (const MomentKind moments : {MomentKind::f32, MomentKind::eight_bit}) {
      SCOPED_TRACE(fmt::format("{}, {}", test::name_of(path), name_of(moments)));
      TrainOptions options = options_of_head();
      options.batch_size = 2;
      options.max_steps = 3;
      options.head_moments = moments;
      options.head_state = MemoryPlace::device;
      const auto device = run(options, path);
      options.head_state = MemoryPlace::host;
      const auto host = run(options, path);
      EXPECT_TRUE(device->adapter() == host->adapter());
      EXPECT_TRUE(device->optimizer() == host->optimizer());
      EXPECT_EQ(device->curve.plan.memory.host_head, 0u);
      EXPECT_GT(host->curve.plan.memory.host_head, 0u);
    }
  }
}

// With moments of 8 bits the curve stays close to that of f32.
TEST(HeadTraining, MomentsOfEightBitsLearnAlike) {
  TrainOptions options = options_of_head();
  options.head_moments = MomentKind::eight_bit;
  expect_same_curve(run(options)->curve, plain_run().curve, 0.01);
}

TEST(HeadTraining, LowersTheValidationLossBelowLoraAlone) {
  TrainOptions options = options_of_head();
  const test::TemporaryFolder folder;
  options.valid = test::first_rows(folder, "valid.jsonl", 16);
  options.batch_size = 8;
  options.max_steps = 12;
  options.head_learning_rate = 6e-4;
  const auto with_head = run(options);
  options.train_head = false;
  options.head_learning_rate.reset();
  const auto lora_alone = run(options);
  EXPECT_LT(with_head->curve.evaluations.back().eval_loss, lora_alone->curve.evaluations.back().eval_loss - 0.05);
}

TEST(HeadTraining, ThePlanCountsIt) {
  TrainOptions options = options_of_head();
  options.train_head = false;
  options.max_steps = 1;
  const auto lora_alone = run(options);
  const RunPlan &with = plain_run().curve.plan, &without = lora_alone->curve.plan;
  EXPECT_EQ(with.trainable_parameters, without.trainable_parameters + 4096 * 256);
  EXPECT_TRUE(with.lora.saves_head);
  // Master, gradient and two moments.
  EXPECT_GE(with.memory.trained_head, 4u * 4096 * 256 * 4);
  EXPECT_EQ(with.memory.frozen_weights, without.memory.frozen_weights);
  EXPECT_EQ(without.memory.trained_head, 0u);
}

TEST(HeadTraining, IsGoneOnWithOnlyWhereSaid) {
  TrainOptions options = options_of_head();
  options.init_adapter = plain_run().output();
  options.max_steps = 1;
  const auto more = run(options);
  EXPECT_LT(more->curve.steps[0].loss, plain_run().curve.steps[0].loss);
  options.train_head = false;
  test::expect_error<UsageError>([&] { run(options); }, "--train-head");
  options = options_of_head();
  options.train_head = false;
  options.head_learning_rate = 1e-3;
  test::expect_error<UsageError>([&] { run(options); }, "--train-head");
}

TEST(HeadTraining, ARateOfItsOwn) {
  TrainOptions options = options_of_head();
  options.head_learning_rate = 0.0;
  options.max_steps = 2;
  const auto still = run(options);
  const SafetensorsFile adapter(still->output() / "adapter_model.safetensors");
  const SafetensorsFile base(test::source_path("models/tiny-qwen3/model.safetensors"));
  EXPECT_TRUE(adapter.read_as_f32("base_model.model.lm_head.weight") == base.read_as_f32("model.embed_tokens.weight"));
}

ModelState state_with_trained_head(ProductPath path) {
  ModelState state = ModelState::load(test::device(), test::source_path("models/tiny-qwen3"),
                                      {.path = path, .lora = LoraConfig{.rank = 4}});
  state.train_head({});
  return state;
}

// One update with a few made-up tokens.
StepResult step(ModelState& state, double learning_rate) {
  Trainer trainer(state, {.model = {.max_tokens = 16, .max_labels = 16}});
  const std::vector<std::uint32_t> tokens = {5, 17, 300, 4000, 1, 2, 3}, position = {0, 1, 2, 3, 4, 5, 6}, begin(7, 0), end(7, 7),
                                   rows = {0, 1, 2, 3, 4, 5}, labels = {17, 300, 4000, 1, 2, 3};
  const TokenStream stream{.tokens = tokens, .position = position, .segment_begin = begin, .segment_end = end, .label_rows = rows,
                           .labels = labels};
  return trainer.full_train_step(std::span(&stream, 1), learning_rate);
}

TEST(HeadOfAState, IsTrainedAndTheBaseStays) {
  for (const ProductPath path : test::product_paths()) {
    SCOPED_TRACE(test::name_of(path));
    ModelState state = state_with_trained_head(path);
    const auto packed = test::device().read<std::uint8_t>(state.weights().layers[1].projection(Projection::up).packed);
    const auto embedding = test::download(state.weights().embedding.data);
    const std::vector<float> before = state.lm_head();
    EXPECT_EQ(state.lm_head_m(), std::vector<float>(before.size()));
    step(state, 1e-3);
    EXPECT_NE(state.lm_head(), before);
    EXPECT_NE(state.lm_head_m(), std::vector<float>(before.size()));
    EXPECT_NE(state.lm_head_v(), std::vector<float>(before.size()));
    EXPECT_TRUE(test::device().read<std::uint8_t>(state.weights().layers[1].projection(Projection::up).packed) == packed);
    EXPECT_TRUE(test::download(state.weights().embedding.data) == embedding);
    EXPECT_EQ(state.trainable_params(), trainable_params(state.config(), {.rank = 4}) + 4096 * 256);
  }
}

// Clipped by the norm of all gradients together.
TEST(HeadOfAState, ItsGradientCountsInTheNorm) {
  ModelState state = state_with_trained_head(ProductPath::f32);
  const StepResult found = step(state, 0);
  double squares = 0;
  for (const float value : test::download(state.trained_head()->gradient())) squares += double{value} * value;
  EXPECT_GT(squares, 0.0);
  for (const float value : test::download(state.lora_mirror().on_device()->grads)) squares += double{value} * value;
  EXPECT_NEAR(found.grad_norm / std::sqrt(squares), 1.0, 1e-5);
}

TEST(HeadOfAState, AnAdapterBringsItsOwn) {
  const fs::path adapter = plain_run().output();
  const ModelState state = ModelState::load(test::device(), test::source_path("models/tiny-qwen3"),
                                            {.path = ProductPath::f32, .adapter = adapter, .trainable = false});
  const SafetensorsFile file(adapter / "adapter_model.safetensors");
  const auto saved = file.read_as_f32("base_model.model.lm_head.weight");
  EXPECT_TRUE(state.lm_head() == saved);
  EXPECT_TRUE(test::download(state.weights().head.data) == saved);
  EXPECT_TRUE(test::download(state.weights().base_head.data) == test::download(state.weights().embedding.data));
  EXPECT_TRUE(state.lora_adapter().config.saves_head);
}

std::vector<float> next_logits(const ModelState& state, bool with_adapter) {
  Generator generator(state, {.capacity = 32});
  generator.use_adapter(with_adapter);
  const std::vector<std::uint32_t> tokens = {5, 17, 300, 4000};
  const auto logits = generator.logits(tokens);
  return {logits.begin(), logits.end()};
}

TEST(HeadOfAState, GoesWithTheAdapter) {
  const auto model = test::source_path("models/tiny-qwen3");
  const ModelState base = ModelState::load(test::device(), model, {.path = ProductPath::f32});
  const ModelState adapted = ModelState::load(test::device(), model,
                                              {.path = ProductPath::f32, .adapter = plain_run().output(), .trainable = false});
  EXPECT_TRUE(next_logits(adapted, false) == next_logits(base, true));
  EXPECT_FALSE(next_logits(adapted, true) == next_logits(base, true));
}

}  // namespace
}  // namespace nibble::head_test
