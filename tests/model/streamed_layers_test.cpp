#include "nibble/base/error.h"
#include "nibble/model/generator.h"
#include "nibble/model/memory_plan.h"
#include "nibble/weights/nf4_room.h"
#include "tests/model/numbered_layers.h"
#include "tests/model/two_passes.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

#include <algorithm>

namespace nibble::streamed_layers_test {
namespace {

constexpr std::uint32_t tokens = 48;
constexpr auto resident = Residency::resident, cached = Residency::cached, streamed = Residency::streamed;

ModelConfig tiny_config() { return read_model_config(test::source_path("models/tiny-qwen3")); }

struct Setting {
  ProductPath path = ProductPath::f32;
  std::vector<Residency> residency = {};
  StreamOptions stream = {};
  ActivationChoices activations = {};
};

StateOptions state_options(const Setting& setting) {
  return {.path = setting.path, .lora = LoraConfig{.rank = 8, .lora_alpha = 16}, .residency = setting.residency, .stream = setting.stream};
}

ModelState tiny_state(const Setting& setting) {
  ModelState state = ModelState::load(test::device(), test::source_path("models/tiny-qwen3"), state_options(setting));
  test::fill_b(state);
  return state;
}

using Result = test::TwoPasses;

Result result_of(const Setting& setting) {
  const ModelState state = tiny_state(setting);
  Model model(state, {.residency = setting.residency, .activations = setting.activations, .max_tokens = tokens, .max_labels = tokens});
  return test::two_passes(state, model, test::TwoSegments(tokens, 20, 4000));
}

TEST(StreamedLayers, AreTheSameBits) {
  for (const ProductPath path : test::product_paths()) {
    SCOPED_TRACE(test::name_of(path));
    const Result whole = result_of({.path = path});
    ASSERT_GT(*std::max_element(whole.gradients.begin(), whole.gradients.end()), 0.0f);
    for (const Activations choice : {Activations::keep, Activations::recompute_mlp, Activations::recompute}) {
      SCOPED_TRACE(static_cast<int>(choice));
      EXPECT_TRUE(whole == result_of({.path = path, .residency = spread_streamed(4, 4), .activations = {choice}}));
      EXPECT_TRUE(whole == result_of({.path = path, .residency = {streamed, cached, streamed, streamed},
                                      .activations = {choice}}));
    }
  }
}

TEST(StreamedLayers, AreTheSameBitsHoweverHostMemoryIsRead) {
  const Result whole = result_of({});
  for (const gpu::HostMemory memory : test::host_memories()) {
    SCOPED_TRACE(gpu::name_of(memory));
    for (const std::uint32_t slots : {2u, 3u}) {
      EXPECT_TRUE(whole == result_of({.residency = spread_streamed(4, 4), .stream = {.memory = memory, .slots = slots}}));
    }
  }
}

TEST(StreamedLayers, GenerateTheSame) {
  std::vector<std::uint32_t> text;
  for (std::uint32_t i = 0; i < 30; ++i) text.push_back((i * 2654435761u >> 9) % 4000);
  const auto logits_of = [&](const Setting& setting) {
    const ModelState state = tiny_state(setting);
    Generator generator(state, {.capacity = 64, .sequences = 2});
    std::vector<float> all;
    for (std::size_t length : {20u, 21u, 22u, 30u}) {  // a prompt, tokens one at a time, a piece
      for (const float logit : generator.logits(std::span(text).first(length))) all.push_back(logit);
    }
    const Generator::Text both[] = {{0, text}, {1, std::span(text).first(25)}};
    for (const auto logits : generator.all_logits(both)) all.insert(all.end(), logits.begin(), logits.end());
    return all;
  };
  for (const ProductPath path : test::product_paths()) {
    const auto whole = logits_of({.path = path});
    EXPECT_EQ(whole, logits_of({.path = path, .residency = spread_streamed(4, 4)}));
    EXPECT_EQ(whole, logits_of({.path = path, .residency = {resident, streamed, streamed, streamed}}));
  }
}

TEST(StreamedLayers, AreOnTheHostAsTheyAreOnTheDevice) {
  const auto same = [](const ModelState& a, const ModelState& b) {
    for (std::uint32_t layer = 0; layer < a.num_layers(); ++layer) {
      for (const Projection p : all_projections) {
        const Nf4Projection &one = a.layers()[layer].at(p), &other = b.layers()[layer].at(p);
        EXPECT_TRUE(one.packed == other.packed && one.absmax == other.absmax) << layer << ' ' << nibble::name_of(p);
        EXPECT_EQ(a.weights().layers[layer].projection(p).largest, b.weights().layers[layer].projection(p).largest);
      }
    }
  };
  const ModelState whole = tiny_state({});
  for (const gpu::HostMemory memory : test::host_memories()) {
    same(whole, tiny_state({.residency = {streamed, resident, streamed, streamed}, .stream = {.memory = memory}}));
  }
}

TEST(StreamedLayers, FillTheWeightCache) {
  ModelState whole = tiny_state({}), sent = tiny_state({.residency = spread_streamed(4, 3)});
  whole.populate_weight_cache();
  sent.populate_weight_cache();
  for (std::uint32_t layer = 0; layer < 4; ++layer) {
    EXPECT_EQ(test::download(whole.ffn_cache(layer)->down), test::download(sent.ffn_cache(layer)->down));
    EXPECT_EQ(test::download(whole.attn_cache(layer)->q), test::download(sent.attn_cache(layer)->q));
  }
}

// Beside the weights themselves a state takes the same either way.
TEST(StreamedLayers, TakeThePlannedBytes) {
  auto& device = test::device();
  const ModelConfig config = tiny_config();
  const auto take = [&](const Setting& setting) {
    const gpu::MemoryUse before = device.memory();
    const ModelState state = tiny_state(setting);
    return std::pair(device.memory().current - before.current, device.memory().host - before.host);
  };
  const auto plan = [&](const Setting& setting) {
    return plan_memory(device, config, {.residency = setting.residency, .stream = setting.stream, .max_tokens = tokens, .max_labels = tokens},
                       {.rank = 8, .lora_alpha = 16});
  };
  const auto [device_bytes, host_bytes] = take({});
  EXPECT_EQ(host_bytes, 0u);
  EXPECT_EQ(plan({}).host_weights, 0u);
  for (const gpu::HostMemory memory : test::host_memories()) {
    for (const auto& residency : {spread_streamed(4, 1), spread_streamed(4, 3), spread_streamed(4, 4)}) {
      const Setting setting{.residency = residency, .stream = {.memory = memory}};
      const auto [on_device, on_host] = take(setting);
      EXPECT_EQ(on_host, plan(setting).host_weights);
      EXPECT_EQ(device_bytes - on_device, plan({}).frozen_weights - plan(setting).frozen_weights);
      EXPECT_EQ(on_host > 0, true);
    }
  }
  EXPECT_EQ(plan({}).frozen_weights - plan({.residency = spread_streamed(4, 4)}).frozen_weights, 2 * gpu::buffer_bytes(nf4_layer_bytes(config)));
}

// Rows of an embedding that lies in host memory; the head of these models is its own.
TEST(StreamedLayers, ReadTheEmbeddingFromTheHost) {
  auto& device = test::device();
  if (test::must_skip(gpu::supports(device.info(), gpu::HostMemory::direct))) GTEST_SKIP() << "Kernels cannot read host memory.";
  const std::string model = test::source_path("tests/golden/llama/model");
  const ModelConfig config = read_model_config(model);
  ASSERT_FALSE(config.tie_word_embeddings);
  for (const ProductPath path : test::product_paths()) {
    const auto losses = [&](const StreamOptions& stream, std::uint64_t& on_device, std::uint64_t& on_host) {
      const gpu::MemoryUse before = device.memory();
      const ModelState state = ModelState::load(device, model, {.path = path, .stream = stream});
      on_device = device.memory().current - before.current, on_host = device.memory().host - before.host;
      const ModelOptions options{.path = path, .stream = stream, .max_tokens = tokens, .max_labels = tokens, .trainable = false};
      EXPECT_EQ(on_host, plan_memory(device, config, options, {}).host_weights);
      Model on(state, options);
      test::TwoSegments batch(tokens, 20, 4000);
      for (auto* ids : {&batch.ids, &batch.labels}) {
        for (std::uint32_t& id : *ids) id %= config.vocab_size;
      }
      gpu::Recorder recorder(device);
      const Head::Loss loss = on.loss(recorder, on.upload(recorder, batch.stream()));
      recorder.submit();
      return device.read<float>(loss.loss);
    };
    std::uint64_t whole = 0, less = 0, none = 0, host = 0;
    EXPECT_EQ(losses({}, whole, none), losses({.embedding = true}, less, host));
    EXPECT_EQ(none, 0u);
    const std::uint64_t table = std::uint64_t{config.vocab_size} * config.hidden_size * size_of(operand_dtype(path));
    EXPECT_GE(host, table);
    EXPECT_EQ(whole - less, gpu::buffer_bytes(table));
  }
}

// What is sent, by the order of layers alone.
class Streaming : public test::NumberedLayers {
 protected:
  static constexpr std::uint32_t layers = 7;

  void make(std::uint32_t slots, const std::vector<std::uint32_t>& which, bool carried = false) {
    config.num_layers = layers;
    stream = std::make_unique<LayerStream>(test::device(), config, slots, carried);
    for (const std::uint32_t layer : which) {
      Nf4Room room(test::device(), config, gpu::HostMemory::staged);
      const LayerProjections projections = write_number(room, layer);
      stream->add(layer, room.finish(), projections);
    }
  }
};

// At both ends of a step the slots hold the layers that it turns back to.
TEST_F(Streaming, SendsNothingTwiceWhereAPassTurns) {
  for (const auto& which : std::vector<std::vector<std::uint32_t>>{{0, 1, 2, 3, 4, 5, 6}, {1, 2, 5, 6}, {0, 3}, {4}}) {
    const std::uint64_t count = which.size();
    for (const auto& [slots, carried] : {std::pair<std::uint64_t, bool>{2, false}, {3, false}, {2, true}, {3, true}}) {
      make(static_cast<std::uint32_t>(std::min(slots, count)), which, carried);
      step(which, false);
      const std::uint64_t first = copies();
      for (const bool again : {false, true}) {
        const std::uint64_t before = copies();
        step(which, again);
        EXPECT_EQ(copies() - before, count <= slots ? 0 : 2 * (count - slots));
      }
      EXPECT_EQ(first, count <= slots ? count : count + (count - slots));
      expect_seen();
    }
  }
}

TEST_F(Streaming, SendsTheNextLayerBehindTheFirstKernelOfThisOne) {
  make(2, {0, 1, 2, 3, 4, 5, 6});
  stream->go(LayerOrder::up);
  stream->projections(recorder, 0);
  EXPECT_EQ(copies(), 1u);
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    use(layer);
    EXPECT_EQ(copies(), std::min(layer + 2, layers));
  }
  stream->go(LayerOrder::down);
  use(6);
  EXPECT_EQ(copies(), layers);  // layer 5 is there still
  for (std::uint32_t layer = 6; layer-- > 0;) {
    use(layer);
    EXPECT_EQ(copies(), layers + std::min(6 - layer, 5u));
  }
  expect_seen();
}

TEST_F(Streaming, GoesRoundWithOneCopyALayer) {
  const std::vector<std::uint32_t> which{0, 1, 3, 4, 6};
  make(2, which);
  stream->go(LayerOrder::round);
  for (int pass = 0; pass < 3; ++pass) {
    const std::uint64_t before = copies();
    for (const std::uint32_t layer : which) use(layer);
    EXPECT_EQ(copies() - before, pass == 0 ? which.size() + 1 : which.size());  // the first one of the next pass is on its way
  }
  expect_seen();
}

TEST_F(Streaming, HoldsTheLayerThatIsAskedForInAnyOrder) {
  const std::vector<std::uint32_t> which{0, 1, 2, 4, 5, 6};
  for (const std::uint32_t slots : {2u, 3u, 4u}) {
    make(slots, which);
    use_at_random(which, slots);
  }
  expect_refused(3);
}

TEST(Residencies, AreChosen) {
  EXPECT_EQ(choose_residency(3, resident, {}), std::vector<Residency>(3, resident));
  EXPECT_EQ(choose_residency(3, streamed, {}), std::vector<Residency>(3, streamed));
  EXPECT_EQ(choose_residency(4, cached, 1), (std::vector{cached, cached, streamed, cached}));
  EXPECT_EQ(choose_residency(4, streamed, 2), (std::vector{resident, streamed, resident, streamed}));
  EXPECT_EQ(choose_residency(4, streamed, 0), std::vector<Residency>(4, resident));
  test::expect_error<UsageError>([] { choose_residency(4, streamed, 5); }, "5 layers are to be streamed; the model has 4");
  test::expect_error<UsageError>([] { stream_slots({streamed}, 1, {.slots = 1}); }, "share 1 slots; give 2 or more");
  EXPECT_EQ(residency_of({}, 5), resident);
  for (std::uint32_t layers = 1; layers < 40; ++layers) {
    for (std::uint32_t count = 0; count <= layers; ++count) {
      const auto all = spread_streamed(layers, count);
      EXPECT_EQ(count_of(all, layers, streamed), count);
      std::uint32_t gap = 0, shortest = layers, longest = 0, seen = 0;
      for (const Residency one : all) {
        if (one == streamed) {
          if (seen++ > 0) shortest = std::min(shortest, gap), longest = std::max(longest, gap);
          gap = 0;
        }
        ++gap;
      }
      EXPECT_TRUE(seen < 2 || longest - shortest <= 1) << count << " of " << layers;
    }
  }
}

}  // namespace
}  // namespace nibble::streamed_layers_test
