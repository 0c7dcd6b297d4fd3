#include "nibble/model/generator.h"
#include "nibble/model/memory_plan.h"
#include "nibble/quant/double_quant.h"
#include "nibble/weights/bnb.h"
#include "nibble/weights/load_check.h"
#include "nibble/weights/nf4_room.h"
#include "nibble/weights/quantize.h"
#include "nibble/weights/scale_room.h"
#include "tests/model/two_passes.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

#include <algorithm>

namespace nibble::double_quant_test {
namespace {

using test::device;

constexpr std::uint32_t tokens = 48;
constexpr auto resident = Residency::resident, cached = Residency::cached, streamed = Residency::streamed;

const fs::path tiny = test::source_path("models/tiny-qwen3"), experts = test::source_path("tests/golden/qwen3-moe/model"),
               bnb = test::source_path("tests/golden/bnb/model");

struct Setting {
  fs::path model = tiny;
  bool double_quant = false;
  ProductPath path = ProductPath::f32;
  std::vector<Residency> residency = {};
  std::optional<gpu::HostMemory> memory = {};
  ActivationChoices activations = {};
  bool dora = false, one_room = false;

  StreamOptions stream() const { return {.memory = memory, .double_quant = double_quant}; }
};

ModelState state_of(const Setting& setting) {
  ModelState state = ModelState::load(device(), setting.model,
                                      {.path = setting.path, .lora = LoraConfig{.rank = 4, .lora_alpha = 8, .use_dora = setting.dora},
                                       .residency = setting.residency, .stream = setting.stream()});
  test::fill_b(state);
  return state;
}

using Result = test::TwoPasses;

Result result_of(const Setting& setting) {
  const ModelState state = state_of(setting);
  Model model(state, {.residency = setting.residency, .activations = setting.activations, .one_decoded_room = setting.one_room,
                      .max_tokens = tokens, .max_labels = tokens});
  return test::two_passes(state, model, test::TwoSegments(tokens, 20, std::min(4000u, state.vocab_size())));
}

// The model as `nibble quantize --double-quant` writes it, whose scales are read back as f32: what the option has to give, by the
// processor's code and without any kernel of it.
class DoubleQuant : public testing::Test {
 protected:
  static fs::path written(const fs::path& model) {
    static const test::TemporaryFolder folder;
    const fs::path output = folder / model.parent_path().filename().string();
    if (!fs::exists(output)) quantize_model({.model = model, .output = output, .double_quant = true});
    return output;
  }
};

TEST_F(DoubleQuant, TrainsAsWithScalesThatWereRoundedBefore) {
  for (const ProductPath path : test::product_paths()) {
    SCOPED_TRACE(test::name_of(path));
    const Result rounded = result_of({.model = written(tiny), .path = path});
    ASSERT_GT(*std::max_element(rounded.gradients.begin(), rounded.gradients.end()), 0.0f);
    EXPECT_FALSE(rounded == result_of({.path = path})) << "scales in 8 bits change results";
    EXPECT_TRUE(rounded == result_of({.double_quant = true, .path = path}));
    EXPECT_TRUE(rounded == result_of({.model = written(tiny), .double_quant = true, .path = path}));
    EXPECT_TRUE(rounded == result_of({.double_quant = true, .path = path, .one_room = true}));
    for (const Activations choice : {Activations::recompute_mlp, Activations::recompute}) {
      EXPECT_TRUE(rounded == result_of({.double_quant = true, .path = path, .residency = spread_streamed(4, 4), .activations = {choice}}));
      EXPECT_TRUE(rounded == result_of({.double_quant = true, .path = path, .residency = {streamed, cached, resident, streamed}, .activations = {choice}}));
    }
  }
}

TEST_F(DoubleQuant, TrainsTheSameHoweverHostMemoryIsRead) {
  for (const ProductPath path : test::product_paths()) {
    const Result rounded = result_of({.model = written(tiny), .path = path});
    for (const gpu::HostMemory memory : test::host_memories()) {
      SCOPED_TRACE(gpu::name_of(memory));
      EXPECT_TRUE(rounded == result_of({.double_quant = true, .path = path, .residency = {resident, streamed, streamed, streamed}, .memory = memory}));
    }
  }
}

TEST_F(DoubleQuant, TrainsDoraTheSame) {
  for (const ProductPath path : test::product_paths()) {
    const Result rounded = result_of({.model = written(tiny), .path = path, .dora = true});
    EXPECT_TRUE(rounded == result_of({.double_quant = true, .path = path, .dora = true}));
    EXPECT_TRUE(rounded == result_of({.double_quant = true, .path = path, .residency = spread_streamed(4, 3), .dora = true}));
  }
}

TEST_F(DoubleQuant, TrainsExpertsTheSame) {
  const std::uint32_t layers = read_model_config(experts).num_layers;
  for (const ProductPath path : test::product_paths()) {
    const Result rounded = result_of({.model = written(experts), .path = path});
    EXPECT_FALSE(rounded == result_of({.model = experts, .path = path}));
    EXPECT_TRUE(rounded == result_of({.model = experts, .double_quant = true, .path = path}));
    EXPECT_TRUE(rounded == result_of({.model = experts, .double_quant = true, .path = path, .residency = spread_streamed(layers, layers)}));
  }
}

// A prompt, tokens one at a time, which are prepared ahead elsewhere, a piece, and two texts at a time. Passes between them leave the
// room by turns with the last layer, as those of the generator do, and with the first.
TEST_F(DoubleQuant, GeneratesTheSame) {
  std::vector<std::uint32_t> text;
  for (std::uint32_t i = 0; i < 30; ++i) text.push_back((i * 2654435761u >> 9) % 4000);
  const auto logits_of = [&](const Setting& setting) {
    const ModelState state = state_of(setting);
    Generator generator(state, {.capacity = 64, .sequences = 2});
    Model model(state, {.max_tokens = tokens, .max_labels = tokens});
    const test::TwoSegments batch(tokens, 20, 4000);
    std::vector<float> all;
    for (const std::size_t length : {20u, 21u, 22u, 23u, 30u}) {
      for (const float logit : generator.logits(std::span(text).first(length))) all.push_back(logit);
      gpu::Recorder recorder(device());
      const DeviceStream stream = model.upload(recorder, batch.stream());
      if (length % 2 == 0) {
        model.loss(recorder, stream);
      } else {
        model.loss_and_gradients(recorder, stream, {.factor = 1.0f});
      }
      recorder.submit();
    }
    const Generator::Text both[] = {{0, text}, {1, std::span(text).first(25)}};
    for (const auto logits : generator.all_logits(both)) all.insert(all.end(), logits.begin(), logits.end());
    return all;
  };
  for (const ProductPath path : test::product_paths()) {
    const auto rounded = logits_of({.model = written(tiny), .path = path});
    EXPECT_EQ(rounded, logits_of({.double_quant = true, .path = path}));
    EXPECT_EQ(rounded, logits_of({.double_quant = true, .path = path, .residency = {resident, streamed, streamed, streamed}}));
  }
}

TEST_F(DoubleQuant, IsWhatTheHostAndCachesHave) {
  for (const gpu::HostMemory memory : test::host_memories()) {
    ModelState rounded = state_of({.model = written(tiny)});
    ModelState state = state_of({.double_quant = true, .residency = spread_streamed(4, 2), .memory = memory});
    for (std::uint32_t layer = 0; layer < 4; ++layer) {
      for (const Projection p : all_projections) {
        const Nf4Projection &one = rounded.layers()[layer].at(p), &other = state.layers()[layer].at(p);
        EXPECT_TRUE(one.packed == other.packed && one.absmax == other.absmax) << layer << ' ' << nibble::name_of(p);
        EXPECT_EQ(rounded.weights().layers[layer].projection(p).largest, state.weights().layers[layer].projection(p).largest);
      }
    }
    rounded.populate_weight_cache();
    state.populate_weight_cache();
    for (std::uint32_t layer = 0; layer < 4; ++layer) {
      EXPECT_EQ(test::download(rounded.ffn_cache(layer)->down), test::download(state.ffn_cache(layer)->down));
      EXPECT_EQ(test::download(rounded.attn_cache(layer)->q), test::download(state.attn_cache(layer)->q));
    }
  }
}

TEST_F(DoubleQuant, LeavesScalesOfBitsandbytesAsTheyAre) {
  EXPECT_TRUE(result_of({.model = bnb}) == result_of({.model = bnb, .double_quant = true}));
  const Checkpoint checkpoint(bnb);
  const auto matrix = bnb_matrix(checkpoint, projection_tensor_name(1, Projection::up), 768, 256);
  ASSERT_TRUE(matrix && bnb_double_quantized(*matrix));
  std::vector<std::uint8_t> packed(768 * 256 / 2);
  std::vector<float> absmax(768 * 256 / 64);
  read_bnb(*matrix, 0, packed, absmax);
  EXPECT_EQ(decoded(double_quantized(absmax, matrix)), absmax);
  EXPECT_NE(decoded(double_quantized(absmax, {})), absmax) << "about another mean these round anew";
  // By another map, or in other blocks, they have to be.
  auto other = *matrix;
  other.nested_map[200] += 0.001f;
  EXPECT_FALSE(bnb_double_quantized(other));
  other = *matrix;
  other.nested_blocksize = 512;
  EXPECT_FALSE(bnb_double_quantized(other));
}

TEST_F(DoubleQuant, QuantisesAsTheWholeIsByAnyNumberOfThreads) {
  for (const std::size_t count : {1u, 255u, 256u, 257u, 100'000u}) {
    const auto absmax = test::random_values(count, count, 0.1f);
    const DoubleQuantized whole = double_quantize(absmax), parts = double_quantized(absmax, {});
    EXPECT_EQ(whole.codes, parts.codes);
    EXPECT_EQ(whole.nested_absmax, parts.nested_absmax);
    EXPECT_EQ(whole.offset, parts.offset);
  }
}

TEST_F(DoubleQuant, IsCheckedWhenLoaded) {
  for (const fs::path& model : {tiny, bnb, experts}) {
    const Checkpoint checkpoint(model);
    const DeviceWeights weights = load_weights(device(), checkpoint, read_model_config(model), {.stream = {.double_quant = true}});
    EXPECT_TRUE(check_loaded(device(), checkpoint, weights).passed()) << model;
    const Nf4Matrix& last = weights.layers.back().projection(Projection::down);
    for (const gpu::Tensor& part : {last.scale_codes, last.scale_blocks}) {
      const gpu::Tensor words(part.buffer(), part.offset(), DType::u32, {static_cast<std::uint32_t>(part.bytes() / 4)});
      auto values = device().read<std::uint32_t>(words);
      values[0] ^= 0x10u;
      device().write(words, std::as_bytes(std::span(values)));
      EXPECT_FALSE(check_loaded(device(), checkpoint, weights).passed()) << model;
      values[0] ^= 0x10u;
      device().write(words, std::as_bytes(std::span(values)));
    }
  }
}

TEST_F(DoubleQuant, TakesThePlannedBytes) {
  for (const fs::path& model : {tiny, experts}) {
    const ModelConfig config = read_model_config(model);
    const auto take = [&](const Setting& setting) {
      const gpu::MemoryUse before = device().memory();
      const ModelState state = state_of(setting);
      return std::pair(device().memory().current - before.current, device().memory().host - before.host);
    };
    const auto plan = [&](const Setting& setting) {
      return plan_memory(device(), config, {.residency = setting.residency, .stream = setting.stream(), .max_tokens = tokens, .max_labels = tokens},
                         {.rank = 4, .lora_alpha = 8});
    };
    const std::uint64_t whole = take({.model = model}).first, planned = plan({.model = model}).frozen_weights;
    for (const gpu::HostMemory memory : test::host_memories()) {
      for (const std::uint32_t sent : {0u, 1u, config.num_layers}) {
        const Setting setting{.model = model, .double_quant = true, .residency = spread_streamed(config.num_layers, sent), .memory = memory};
        const auto [on_device, on_host] = take(setting);
        EXPECT_EQ(on_host, plan(setting).host_weights);
        EXPECT_EQ(on_device + planned, plan(setting).frozen_weights + whole);
      }
    }
  }
}

// Of a model of a size that is used a scale takes 8.13 bits, and kernels' own is one layer's alone.
TEST_F(DoubleQuant, KeepsAQuarterOfTheScalesBytes) {
  const ModelConfig config{.hidden_size = 2560, .num_heads = 32, .num_kv_heads = 8, .head_dim = 128, .intermediate_size = 9728};
  std::uint64_t weights = 0;
  for (const Projection p : all_projections) weights += std::uint64_t{projection_dims(config, p).out} * projection_dims(config, p).in;
  EXPECT_EQ(nf4_layer_bytes(config), weights / 2 + weights / 64 * 4);
  const std::uint64_t nested = nf4_layer_bytes(config, true);
  EXPECT_GE(nested, weights / 2 + weights / 64 + weights / 64 / 256 * 8);
  EXPECT_LE(nested, weights / 2 + weights / 64 + weights / 64 / 256 * 8 + 512);
  EXPECT_EQ(ScaleRoom::bytes(config), weights / 64 * 4 + gpu::buffer_bytes(1024));
}

}  // namespace
}  // namespace nibble::double_quant_test
