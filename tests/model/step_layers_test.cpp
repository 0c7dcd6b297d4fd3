#include "nibble/model/step_layers.h"

#include "nibble/gpu/together.h"
#include "nibble/model/generator.h"
#include "nibble/model/generator_bench.h"
#include "nibble/weights/layer_stream.h"
#include "tests/model/generator_texts.h"
#include "tests/support/gpu_test.h"

namespace nibble::step_layers_test {
namespace {

using generator_test::Tokens;
using Runs = std::vector<std::uint32_t>;

constexpr std::uint32_t layers = 6;

ModelConfig config_of(std::vector<bool> nope = {}) {
  ModelConfig config = generator_test::load_tiny(ProductPath::f32, false).config();
  config.num_layers = layers, config.hidden_size = 128, config.intermediate_size = 64, config.num_heads = 2, config.num_kv_heads = 1, config.head_dim = 64;
  config.nope = std::move(nope);
  return config;
}

// The layers of each dispatch of a token; of caches in so many buffers.
Runs runs_of(const ModelState& state, std::uint32_t buffers = 1) {
  gpu::Device& device = test::device();
  const ModelConfig& config = state.config();
  const LoraWeights* lora = state.has_lora() ? state.lora_mirror().on_device() : nullptr;
  const StepLayers step = StepLayers::make(device, config, state.weights(), lora, ProductPath::f32, 1).value();
  std::vector<KeyCache> caches;
  for (std::uint32_t buffer = 0; buffer < buffers; ++buffer) {
    const auto keys = [&] { return gpu::tensors_together(device, layers / buffers, DType::f32, {config.num_kv_heads, 16, config.head_dim}, "keys"); };
    const auto k = keys(), v = keys();
    for (std::uint32_t layer = 0; layer < layers / buffers; ++layer) caches.push_back({k[layer], v[layer]});
  }
  gpu::Recorder recorder(device);
  const DeviceStream stream;
  const Rotations rotations(device, config, 16, 16);
  const StepLayers::Pass pass{recorder, stream, rotations, lora, 0, 1, 0};
  Runs runs;
  for (std::uint32_t first = 0; first < layers; first += runs.back()) runs.push_back(step.run_from(first, pass, caches));
  return runs;
}

// Logits of tokens one at a time are those of the training forward.
void expect_the_same_logits(const ModelState& state) {
  const Tokens tokens = generator_test::golden_row(0);
  const auto expected = generator_test::training_logits(state, tokens);
  Generator generator(state, {.capacity = 128, .step_workgroups = 1});
  for (std::size_t count = 20; count <= 22; ++count) {
    EXPECT_LT(test::relative_error(generator.logits(generator_test::first(tokens, count)), expected[count - 1]), 1e-5) << count;
  }
  EXPECT_TRUE(generator.steps_in_one_dispatch());
}

struct Case {
  const char* what;
  StateOptions options;
  std::vector<bool> nope;
  Runs runs;
};

LoraConfig adapters(std::vector<std::uint32_t> of_layers = {}) {
  return {.rank = 4, .lora_alpha = 8, .target_modules = usual_targets(config_of()), .layers_to_transform = std::move(of_layers)};
}

StateOptions with_lora(LoraConfig lora) {
  StateOptions options;
  options.lora = std::move(lora);
  return options;
}

TEST(StepLayers, ThoseThatAreAlikeAndLieTogetherTakeOneDispatch) {
  LoraConfig other_factor = adapters(), other_target = adapters();
  other_factor.alpha_pattern = {{"3.mlp.down_proj", 24.0}};
  other_target.exclude_modules = {"model.layers.2.self_attn.k_proj"};
  StateOptions nested;
  nested.stream.double_quant = true;
  const std::vector<Case> cases{
      {"all", {}, {}, {6}},
      {"adapters of all", with_lora(adapters()), {}, {6}},
      {"adapters of some layers, evenly placed but where one is left out", with_lora(adapters({0, 1, 3, 4})), {}, {2, 1, 2, 1}},
      {"another factor", with_lora(other_factor), {}, {3, 1, 2}},
      {"a projection without", with_lora(other_target), {}, {2, 1, 3}},
      {"a layer that does not rotate", {}, {false, false, true, true, false, false}, {2, 2, 2}},
      {"scales in 8 bits", nested, {}, {1, 1, 1, 1, 1, 1}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.what);
    StateOptions options = c.options;
    options.path = ProductPath::f32, options.trainable = false;
    ModelState state = ModelState::made_up(test::device(), config_of(c.nope), options);
    if (options.lora) make_up_adapters(state);
    EXPECT_EQ(runs_of(state), c.runs);
    expect_the_same_logits(state);
  }
}

TEST(StepLayers, RunsEndWhereABufferEnds) {
  const ModelState state = ModelState::made_up(test::device(), config_of(), {.path = ProductPath::f32, .trainable = false});
  EXPECT_EQ(runs_of(state, 2), (Runs{3, 3}));
  EXPECT_EQ(runs_of(state, 6), (Runs{1, 1, 1, 1, 1, 1}));
}

// Of streamed layers each stands in a slot, and others lie between those that stay.
TEST(StepLayers, StreamedLayersTakeADispatchEach) {
  const ModelState state = ModelState::made_up(test::device(), config_of(),
                                               {.path = ProductPath::f32, .trainable = false, .residency = spread_streamed(layers, 2), .stream = {.memory = gpu::HostMemory::staged}});
  std::uint32_t first = 0;
  for (const std::uint32_t run : runs_of(state)) {
    const auto streams = [&](std::uint32_t layer) { return state.weights().stream->has(layer); };
    for (std::uint32_t layer = first; run > 1 && layer < first + run; ++layer) EXPECT_FALSE(streams(layer)) << layer;
    first += run;
  }
  EXPECT_GT(runs_of(state).size(), 2u);
  expect_the_same_logits(state);
}

}  // namespace
}  // namespace nibble::step_layers_test
