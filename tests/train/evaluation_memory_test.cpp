#include "nibble/base/error.h"
#include "nibble/gpu/host_tensor.h"
#include "nibble/train/evaluate.h"
#include "nibble/train/placement.h"
#include "nibble/weights/shapes.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"
#include "tests/train/placements.h"

// What a plan says of forward passes alone, as `nibble eval` makes them.
namespace nibble::evaluation_memory_test {
namespace {

constexpr BatchRoom room{.tokens = 2048, .labels = 2048};

TrainOptions without_adapter() {
  TrainOptions options;
  options.lora.target_modules.clear();
  return options;
}

Placement of_memory(std::uint64_t bytes, const TrainOptions& options, const char* shape = "qwen3-8b", bool promised = true) {
  return place_evaluation(options, test::device(), shape_by_name(shape), ProductPath::f32, room, {bytes, promised});
}

// From all that there may be to the least: never above, and with less memory never faster.
TEST(EvaluationPlacement, GivesUpOnlyWhatItMust) {
  const TrainOptions options = without_adapter();
  const Placement all = of_memory(0, options);
  EXPECT_EQ(count_of(all.model.residency, 36, Residency::streamed), 0u);
  EXPECT_FALSE(all.model.one_decoded_room);
  EXPECT_FALSE(all.model.trainable);
  EXPECT_EQ(all.memory.adapters + all.memory.trained_head + all.memory.host_moments + all.memory.host_inputs, 0u);
  const std::uint64_t least = of_memory(1, options, "qwen3-8b", false).memory.total();
  test::expect_never_faster_with_less(all, least, [&](std::uint64_t bytes) { return of_memory(bytes, options); });
  const Placement smallest = of_memory(least, options);
  EXPECT_EQ(count_of(smallest.model.residency, 36, Residency::streamed), 36u);
  EXPECT_TRUE(smallest.model.one_decoded_room);
  if (gpu::has_host_tensors(test::device().info())) {
    EXPECT_TRUE(smallest.model.stream.embedding);
    EXPECT_TRUE(smallest.model.stream.head);
  }
  test::expect_error<UsageError>([&] { of_memory(least - 1, options); }, std::to_string(least));
}

// The room for decoded projections costs a forward pass nothing, so it goes before any layer is sent.
TEST(EvaluationPlacement, SharesTheDecodedRoomFirst) {
  const TrainOptions options = without_adapter();
  const Placement less = of_memory(of_memory(0, options).memory.total() - 1, options);
  EXPECT_TRUE(less.model.one_decoded_room);
  EXPECT_EQ(count_of(less.model.residency, 36, Residency::streamed), 0u);
}

TEST(EvaluationPlacement, TakesLessThanTrainingAndSendsLayersOnce) {
  TrainOptions options;
  options.residency = Residency::streamed;
  options.gradient_checkpointing = Checkpointing::on;
  const auto of_layers = [&](std::uint32_t streamed, bool trains) {
    options.stream_layers = streamed;
    const ModelConfig config = shape_by_name("qwen3-4b");
    const StepRates rates = usual_rates(test::device().info(), ProductPath::f32, room.tokens);
    return trains ? place(options, test::device(), config, ProductPath::f32, room, {}, rates)
                  : place_evaluation(options, test::device(), config, ProductPath::f32, room, {});
  };
  EXPECT_LT(of_layers(36, false).memory.total(), of_layers(36, true).memory.total() / 4 * 3);
  EXPECT_LT(of_layers(0, false).pass_seconds, of_layers(0, true).pass_seconds / 2);
  const double once = of_layers(36, false).extra_seconds - of_layers(0, false).extra_seconds;
  EXPECT_GT(once, 0);
  EXPECT_NEAR((of_layers(36, true).extra_seconds - of_layers(0, true).extra_seconds) / once, 2, 1e-6);
}

TEST(EvaluationPlacement, WhatIsSaidHolds) {
  TrainOptions options;
  options.stream_layers = 5;
  options.shared_decode = false;
  options.head_chunk = 128;
  options.offload_inputs = 3;  // of training
  options.lora_state = MemoryPlace::host;
  const Placement small = of_memory(1, options, "qwen3-4b", false);
  EXPECT_EQ(count_of(small.model.residency, 36, Residency::streamed), 5u);
  EXPECT_FALSE(small.model.one_decoded_room);
  EXPECT_EQ(small.model.head_chunk, 128u);
  EXPECT_EQ(small.model.offloaded_inputs, 0u);
  EXPECT_EQ(small.memory.host_moments, 0u);
}

struct Setting {
  const char* model = "models/tiny-qwen3";
  LoraConfig lora = {.rank = 8, .lora_alpha = 16};
  StreamOptions stream = {};
  std::uint32_t streamed = 0;
  bool one_room = false;
};

LoraConfig with(const std::function<void(LoraConfig&)>& change) {
  LoraConfig lora{.rank = 8, .lora_alpha = 16};
  change(lora);
  return lora;
}

std::vector<Setting> settings() {
  const auto none = with([](LoraConfig& lora) { lora.target_modules.clear(); });
  const auto head = with([](LoraConfig& lora) { lora.saves_head = true; });
  const auto dora = with([](LoraConfig& lora) { lora.use_dora = true; });
  const auto rows = with([](LoraConfig& lora) { lora.trained_tokens = {1, 5, 7}; });
  const StreamOptions codes{.tables = TableForm::nf4}, away{.embedding = true, .head = true};
  return {{.lora = none},
          {},
          {.lora = dora, .streamed = 3},
          {.lora = head, .one_room = true},
          {.lora = head, .stream = codes, .streamed = 4},
          {.lora = rows},
          {.lora = none, .stream = {.double_quant = true}, .streamed = 2},
          {.model = "tests/golden/llama/model", .lora = head, .stream = away},
          {.model = "tests/golden/mistral/model", .lora = none, .one_room = true},
          {.model = "tests/golden/qwen3-moe/model"}};
}

LoraAdapter adapter_of(const ModelConfig& config, const LoraConfig& lora) {
  LoraAdapter adapter = make_lora_adapter(config, lora);
  adapter.token_rows.resize(lora.trained_tokens.size() * config.hidden_size);
  if (!lora.saves_head) return adapter;
  adapter.head = MatrixSource{.rows = config.vocab_size, .columns = config.hidden_size, .read = [config](const PieceSink& sink) {
                                sink(std::vector<float>(std::size_t{config.vocab_size} * config.hidden_size), 0);
                              }};
  return adapter;
}

// On every path: what a model without room for the backward pass takes is what the plan says, and never more.
TEST(EvaluationMemory, IsWhatIsAllocated) {
  gpu::Device& device = test::device();
  const std::uint64_t others = device.memory().current - gpu::buffer_bytes(gpu::params_arena_bytes), others_on_host = device.memory().host;
  for (const ProductPath path : test::product_paths()) {
    std::size_t seen = 0;
    for (const Setting& setting : settings()) {
      SCOPED_TRACE(fmt::format("{}, setting {}", test::name_of(path), seen++));
      const auto folder = test::source_path(setting.model);
      const ModelConfig config = read_model_config(folder);
      const ModelOptions options{.path = path, .residency = spread_streamed(config.num_layers, setting.streamed), .stream = setting.stream,
                                 .one_decoded_room = setting.one_room, .max_tokens = 700, .max_labels = 300, .trainable = false};
      ModelState state = ModelState::load(device, folder, {.path = path, .trainable = false, .rows_change = setting.lora.trains_tokens(),
                                                           .residency = options.residency, .stream = setting.stream});
      if (!setting.lora.target_modules.empty()) state.set_lora(adapter_of(config, setting.lora), false);
      const Model model(state, options);
      const MemoryPlan plan = plan_memory(device, config, options, setting.lora);
      const std::uint64_t allocated = device.memory().current - others;
      EXPECT_LE(allocated, plan.total());
      EXPECT_GE(static_cast<double>(allocated), 0.98 * static_cast<double>(plan.total()));
      EXPECT_EQ(device.memory().host - others_on_host, plan.host_weights);
    }
  }
}

}  // namespace
}  // namespace nibble::evaluation_memory_test
