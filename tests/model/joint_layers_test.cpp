#include "nibble/model/joint_layers.h"

#include "nibble/base/error.h"
#include "nibble/gpu/host_tensor.h"
#include "nibble/model/model.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

#include <algorithm>
#include <numeric>

namespace nibble::joint_layers_test {
namespace {

// Two segments; every token but the last of each has a label.
struct Batch {
  std::vector<std::uint32_t> tokens, position, begin, end, label_rows, labels;

  explicit Batch(std::uint32_t count) {
    const std::uint32_t first = count / 3;
    for (std::uint32_t i = 0; i < count; ++i) {
      const std::uint32_t from = i < first ? 0 : first, to = i < first ? first : count;
      tokens.push_back((i * 2654435761u >> 7) % 4000);
      position.push_back(i - from);
      begin.push_back(from);
      end.push_back(to);
      if (i + 1 < to) label_rows.push_back(i);
    }
    for (const std::uint32_t row : label_rows) labels.push_back(tokens[row + 1]);
  }
  TokenStream stream() const {
    return {.tokens = tokens, .position = position, .segment_begin = begin, .segment_end = end, .label_rows = label_rows,
            .labels = labels};
  }
};

constexpr std::uint32_t most_tokens = 60;

struct Setting {
  ProductPath path;
  LoraConfig lora;
  ModelOptions model = {};
  float dropout = 0;
  std::uint32_t tokens = most_tokens;
};


// Adapters whose B is not zero, so that everything counts.
ModelState tiny_state(const Setting& setting) {
  ModelState state = ModelState::load(test::device(), test::source_path("models/tiny-qwen3"),
                                      {.path = setting.path, .lora = setting.lora});
  std::uint64_t seed = 1;
  for (LoraLayer& layer : state.edit_lora()) {
    for (const Projection p : all_projections) {
      if (!layer.at(p).used()) continue;
      auto& b = layer.at(p).b;
      b = test::random_values(b.size(), ++seed, 0.05f);
    }
  }
  return state;
}

struct Result {
  std::vector<float> losses, gradients;
};

Result gradients_of(const Setting& setting, const Batch& batch) {
  auto& device = test::device();
  const ModelState state = tiny_state(setting);
  ModelOptions options = setting.model;
  options.max_tokens = options.max_labels = setting.tokens;
  options.lora_dropout = setting.dropout > 0;
  Model model(state, options);
  const LoraWeights& lora = *state.lora_mirror().train();
  Result result;
  const Batch before(setting.tokens - 11);  // nothing of it may be taken for this batch's
  for (const Batch* one : {&before, &batch}) {
    gpu::Recorder recorder(device);
    const DeviceStream stream = model.upload(recorder, one->stream());
    recorder.clear(lora.grads);
    const Head::Loss loss = model.loss_and_gradients(recorder, stream, {.factor = 1.0f / static_cast<float>(batch.labels.size())},
                                                     {.dropout = {.probability = setting.dropout, .seed = 5}});
    recorder.submit();
    result.losses = device.read<float>(loss.loss);
  }
  result.gradients = device.read<float>(lora.grads);
  return result;
}

constexpr auto keep = Activations::keep, recompute_mlp = Activations::recompute_mlp, recompute = Activations::recompute;

// Of a model of four layers: each choice alone, and all of them in orders that a plan makes and others.
std::vector<ActivationChoices> activation_choices() {
  return {{},
          {keep},
          {recompute_mlp},
          {recompute},
          {keep, recompute_mlp, recompute, recompute},
          {recompute, keep, recompute_mlp, keep},
          {recompute_mlp, recompute, keep, recompute_mlp}};
}

bool must_skip_offloading() { return test::must_skip(gpu::has_host_tensors(test::device().info())); }

bool has_matrices() { return !test::must_skip(supports(test::device().info(), ProductPath::matrix)); }

// f16 operands and outputs round to 2^-11, some twenty times on the way through a layer.
void expect_near_f32(Setting setting) {
  const Batch batch(most_tokens - 7);
  setting.path = ProductPath::matrix;
  const Result joint = gradients_of(setting, batch);
  setting.path = ProductPath::f32;
  const Result exact = gradients_of(setting, batch);
  EXPECT_LT(test::relative_error(joint.losses, exact.losses), 1e-3);
  EXPECT_LT(test::relative_error(joint.gradients, exact.gradients), 1e-2);
}

LoraConfig targets(std::vector<Projection> projections, std::uint32_t rank = 8) {
  return {.rank = rank, .lora_alpha = 16, .target_modules = std::move(projections)};
}

LoraConfig all_targets(std::uint32_t rank = 8) { return targets({all_projections.begin(), all_projections.end()}, rank); }

LayersOptions options_of(const LoraConfig& lora) {
  return {.path = ProductPath::matrix, .max_tokens = most_tokens, .rank = lora.rank};
}

bool fits(const LoraConfig& lora) {
  const ModelConfig config = read_model_config(test::source_path("models/tiny-qwen3"));
  return JointLayers::fits(test::device(), config, options_of(lora));
}

TEST(JointLayers, AreTheLayersInF32) {
  if (!has_matrices()) GTEST_SKIP() << "The adapter has no matrices.";
  ASSERT_TRUE(fits(all_targets()));
  expect_near_f32({.path = {}, .lora = all_targets()});
}

// Dropout's masks are the same on every path.
TEST(JointLayers, DropTheSameInputs) {
  if (!has_matrices()) GTEST_SKIP() << "The adapter has no matrices.";
  expect_near_f32({.path = {}, .lora = all_targets(), .dropout = 0.4f});
}

TEST(JointLayers, LeaveOutProjectionsWithoutAdapters) {
  if (!has_matrices()) GTEST_SKIP() << "The adapter has no matrices.";
  expect_near_f32({.path = {}, .lora = targets({Projection::q, Projection::v, Projection::up})});
  expect_near_f32({.path = {}, .lora = targets({Projection::o, Projection::down}), .dropout = 0.2f});
}

// Ranks beyond what products take along go through the other layers.
TEST(JointLayers, LeaveWideRanksToPlainLayers) {
  if (!has_matrices()) GTEST_SKIP() << "The adapter has no matrices.";
  EXPECT_TRUE(fits(all_targets(256)));
  EXPECT_FALSE(fits(all_targets(264)));
  expect_near_f32({.path = {}, .lora = all_targets(264)});
}

// On every path.
TEST(Activations, AreTheSameBitsWhateverIsComputedAgain) {
  const Batch batch(most_tokens);
  for (const ProductPath path : test::product_paths()) {
    for (const LoraConfig& lora : {all_targets(), targets({Projection::v, Projection::gate})}) {
      Setting setting{.path = path, .lora = lora, .dropout = 0.3f};
      const Result kept = gradients_of(setting, batch);
      for (const ActivationChoices& choices : activation_choices()) {
        setting.model.activations = choices;
        const Result again = gradients_of(setting, batch);
        EXPECT_EQ(kept.losses, again.losses) << test::name_of(path) << ": " << describe(choices, 4);
        EXPECT_EQ(kept.gradients, again.gradients) << test::name_of(path) << ": " << describe(choices, 4);
      }
    }
  }
}

// Four chunks of which the last has eight rows, or three, on every path, with all that goes by rows. Gradients of the adapters add up
// their parts in another order; on matrix units so do the adapters' hidden values, which are f16: a rounding of 2^-11, or two.
TEST(Activations, AreTheSameInChunksOfTheMlp) {
  const Batch batch(200), shorter(150);
  LoraConfig dora = all_targets();
  dora.use_dora = true;
  const ActivationChoices mixed{recompute_mlp, recompute, recompute_mlp, recompute};
  for (const ProductPath path : test::product_paths()) {
    const bool rounded = path == ProductPath::matrix;
    for (Setting setting : {Setting{.path = path, .lora = all_targets(), .dropout = 0.3f},
                            Setting{.path = path, .lora = targets({Projection::v, Projection::gate})}, Setting{.path = path, .lora = dora}}) {
      setting.tokens = 200;
      const Batch& one = setting.dropout > 0 ? batch : shorter;
      SCOPED_TRACE(fmt::format("{}, dropout {}, {} tokens{}", test::name_of(path), setting.dropout, one.tokens.size(), setting.lora.use_dora ? ", DoRA" : ""));
      setting.model.activations = {recompute};
      const Result whole = gradients_of(setting, one);
      setting.model.mlp_chunk = 64;
      const Result chunks = gradients_of(setting, one);
      EXPECT_LT(test::relative_error(chunks.losses, whole.losses), rounded ? 5e-4 : 1e-6);
      EXPECT_LT(test::relative_error(chunks.gradients, whole.gradients), rounded ? 1e-3 : 1e-5);
      setting.model.activations = mixed;
      setting.model.one_decoded_room = true;
      const Result again = gradients_of(setting, one);
      EXPECT_EQ(again.losses, chunks.losses);
      EXPECT_EQ(again.gradients, chunks.gradients);
    }
  }
}

// Without adapters nothing is added up in another order.
TEST(Activations, OfTheBaseAreTheSameBitsInChunksOfTheMlp) {
  auto& device = test::device();
  const Batch batch(192);
  for (const ProductPath path : test::product_paths()) {
    const ModelState state = tiny_state({.path = path, .lora = all_targets()});
    const auto losses = [&](std::uint32_t chunk) {
      Model model(state, {.activations = {recompute}, .mlp_chunk = chunk, .max_tokens = 192, .max_labels = 192});
      gpu::Recorder recorder(device);
      const Head::Loss loss = model.base_loss(recorder, model.upload(recorder, batch.stream()));
      recorder.submit();
      return device.read<float>(loss.loss);
    };
    EXPECT_EQ(losses(64), losses(0)) << test::name_of(path);
  }
}

TEST(Activations, AreKeptOfNoChunk) {
  Setting setting{.path = ProductPath::f32, .lora = all_targets(), .model = {.activations = {recompute, keep, recompute, recompute}, .mlp_chunk = 64},
                  .tokens = 128};
  test::expect_error<UsageError>([&] { gradients_of(setting, Batch(128)); }, "gradient checkpointing has to allow");
  setting.model.activations = {recompute};
  setting.model.mlp_chunk = 72;
  test::expect_error<UsageError>([&] { gradients_of(setting, Batch(128)); }, "give a multiple of 64");
}

// As many places as there are offloaded inputs, and fewer.
TEST(Activations, AreTheSameBitsWhereverInputsLie) {
  if (must_skip_offloading()) GTEST_SKIP() << "The adapter cannot reach memory of this process.";
  const Batch batch(most_tokens);
  for (const ProductPath path : test::product_paths()) {
    Setting setting{.path = path, .lora = all_targets()};
    const Result kept = gradients_of(setting, batch);
    for (const std::uint32_t offloaded : {1u, 2u, 3u, 4u}) {
      setting.model.offloaded_inputs = offloaded;
      setting.model.activations = {offloaded % 2 ? keep : recompute};
      const Result again = gradients_of(setting, batch);
      EXPECT_EQ(kept.losses, again.losses) << test::name_of(path) << ": " << offloaded;
      EXPECT_EQ(kept.gradients, again.gradients) << test::name_of(path) << ": " << offloaded;
    }
  }
}

// What is kept, what is made again and where weights are decoded are the same numbers.
TEST(JointLayers, AreTheSameBitsHoweverMemoryIsUsed) {
  if (!has_matrices()) GTEST_SKIP() << "The adapter has no matrices.";
  const Batch batch(most_tokens);
  Setting setting{.path = ProductPath::matrix, .lora = all_targets(), .dropout = 0.3f};
  const Result kept = gradients_of(setting, batch);
  setting.model.activations = {Activations::recompute};
  setting.model.one_decoded_room = true;
  EXPECT_EQ(gradients_of(setting, batch).gradients, kept.gradients);
  setting.model.one_decoded_room = false;
  const std::uint32_t layers = read_model_config(test::source_path("models/tiny-qwen3")).num_layers;
  setting.model.residency.assign(layers, Residency::cached);
  EXPECT_EQ(gradients_of(setting, batch).gradients, kept.gradients);
  setting.model.one_decoded_room = true;
  setting.model.residency.front() = Residency::resident;
  EXPECT_EQ(gradients_of(setting, batch).gradients, kept.gradients);
}

// Where layers' packed adapters follow each other in one room: what a layer has not must not be another's.
TEST(JointLayers, HaveNoAdaptersOfOtherLayers) {
  if (!has_matrices()) GTEST_SKIP() << "The adapter has no matrices.";
  const Batch batch(most_tokens);
  LoraConfig lora = all_targets();
  lora.target_pattern = R"(model\.layers\.(0\.(self_attn\.(q_proj|v_proj)|mlp\.down_proj)|1\.self_attn\.k_proj|1\.mlp\.up_proj|3\..*proj))";
  for (const bool dora : {false, true}) {
    lora.use_dora = dora;
    Setting setting{.path = ProductPath::matrix, .lora = lora};
    const Result apart = gradients_of(setting, batch);
    ASSERT_GT(*std::max_element(apart.gradients.begin(), apart.gradients.end()), 0.0f);
    setting.model.one_decoded_room = true;
    for (const Activations choice : {keep, recompute}) {
      setting.model.activations = {choice};
      const Result together = gradients_of(setting, batch);
      EXPECT_EQ(together.losses, apart.losses);
      EXPECT_EQ(together.gradients, apart.gradients);
    }
  }
}

// A device that was tuned: weights in tiles, inner dimensions split.
TEST(JointLayers, AreTheLayersHoweverProductsAreTuned) {
  if (!has_matrices()) GTEST_SKIP() << "The adapter has no matrices.";
  const gpu::Device& device = test::device();
  const ModelConfig config = read_model_config(test::source_path("models/tiny-qwen3"));
  const auto direct = direct_matrix_tile(device.info());
  ASSERT_TRUE(direct.has_value());
  MatrixTuning tuned{.products = {}, .tiled_rows = 1};
  for (const Joint joint : all_joints) {
    const auto [out, in] = joint_dims(config, joint);
    tuned.products.push_back({{MatrixLayout::nt, most_tokens, out, in}, {*direct, 3}});
    tuned.products.push_back({{MatrixLayout::nn, most_tokens, in, out}, {*direct, 2}});
  }
  matrix_tuning(device) = tuned;
  EXPECT_GT(joint_weight_tile(device, config, most_tokens), 0u);
  expect_near_f32({.path = {}, .lora = all_targets()});
  std::vector<Residency> mixed(config.num_layers, Residency::cached);
  mixed.back() = Residency::resident;
  expect_near_f32({.path = {}, .lora = all_targets(), .model = {.residency = mixed}});
  expect_near_f32({.path = {}, .lora = targets({Projection::k, Projection::gate}), .dropout = 0.2f});
  matrix_tuning(device) = {};
}

// Batches of other sizes find every pipeline made, on each path. (Of fewer rows than a tile has, products in f32 have tiles of
// their own on a processor.)
TEST(JointLayers, MakeAllPipelinesInTheFirstStep) {
  auto& device = test::device();
  for (const ProductPath path : test::product_paths()) {
    const ModelState state = tiny_state({.path = path, .lora = all_targets()});
    Model model(state, {.max_tokens = most_tokens, .max_labels = most_tokens});
    const LoraWeights& lora = *state.lora_mirror().train();
    std::uint64_t pipelines = 0;
    for (const std::uint32_t tokens : {most_tokens, 41u, 37u, 59u}) {
      const Batch batch(tokens);
      gpu::Recorder recorder(device);
      const DeviceStream stream = model.upload(recorder, batch.stream());
      recorder.clear(lora.grads);
      model.loss_and_gradients(recorder, stream, {});
      recorder.submit();
      if (pipelines > 0) {
        EXPECT_EQ(device.pipelines_made(), pipelines) << test::name_of(path) << " " << tokens;
      }
      pipelines = device.pipelines_made();
    }
  }
}

// With the adapters switched off, and on again.
TEST(JointLayers, KnowTheBaseAlone) {
  if (!has_matrices()) GTEST_SKIP() << "The adapter has no matrices.";
  auto& device = test::device();
  const Batch batch(most_tokens);
  std::array<std::vector<float>, 3> losses[2];
  for (const ProductPath path : {ProductPath::matrix, ProductPath::f32}) {
    const ModelState state = tiny_state({.path = path, .lora = all_targets()});
    Model model(state, {.max_tokens = most_tokens, .max_labels = most_tokens, .trainable = false});
    gpu::Recorder recorder(device);
    const DeviceStream stream = model.upload(recorder, batch.stream());
    auto& of_path = losses[path == ProductPath::f32];
    const auto read = [&](const Head::Loss& loss) {
      recorder.submit();
      return device.read<float>(loss.loss);
    };
    of_path[0] = read(model.loss(recorder, stream));
    of_path[1] = read(model.base_loss(recorder, stream));
    of_path[2] = read(model.loss(recorder, stream));
  }
  EXPECT_EQ(losses[0][0], losses[0][2]);
  EXPECT_GT(test::relative_error(losses[0][0], losses[0][1]), 1e-2);
  for (std::size_t i = 0; i < 2; ++i) EXPECT_LT(test::relative_error(losses[0][i], losses[1][i]), 1e-3);
}

TEST(JointLayers, TakeThePlannedBytes) {
  if (!has_matrices()) GTEST_SKIP() << "The adapter has no matrices.";
  auto& device = test::device();
  for (const bool dropout : {false, true}) {
    for (const ActivationChoices& choices : activation_choices()) {
      const Setting setting{.path = ProductPath::matrix, .lora = all_targets(16)};
      const ModelState state = tiny_state(setting);
      LayersOptions options = options_of(setting.lora);
      options.activations = choices;
      options.lora_dropout = dropout;
      const LoraWeights* lora = state.lora_mirror().on_device();
      const auto expect_planned = [&] {
        const std::uint64_t before = device.memory().current;
        const auto layers = make_layers(device, state.config(), state.weights(), lora, options);
        const LayersBytes planned = layers_bytes(device, state.config(), options);
        const std::uint64_t sum = planned.activations + planned.decoded_weights + planned.scratch;
        EXPECT_EQ(device.memory().current - before, sum) << describe(choices, 4) << ", chunk " << options.mlp_chunk;
        return sum;
      };
      options.max_tokens = 500;
      const std::uint64_t whole = expect_planned();
      options.one_decoded_room = true;
      const std::uint64_t one_room = expect_planned();
      EXPECT_LT(one_room, whole);
      if (choices != ActivationChoices{recompute}) continue;
      options.mlp_chunk = 128;
      EXPECT_LT(expect_planned(), one_room);
    }
  }
}

}  // namespace
}  // namespace nibble::joint_layers_test
