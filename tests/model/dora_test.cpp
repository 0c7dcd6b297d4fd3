#include "nibble/base/error.h"
#include "nibble/model/generator.h"
#include "nibble/model/model.h"
#include "nibble/quant/nf4.h"
#include "tests/model/two_segments.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

#include <algorithm>
#include <cmath>

namespace nibble::dora_test {
namespace {

constexpr std::uint32_t tokens = 40;
constexpr auto cached = Residency::cached, streamed = Residency::streamed;

struct Setting {
  std::string model = test::source_path("models/tiny-qwen3");
  ProductPath path = ProductPath::f32;
  std::vector<Residency> residency = {};
  StreamOptions stream = {};
  ActivationChoices activations = {};
  bool moved = true;  // B and magnitudes off their start
};

ModelState state_of(const Setting& setting) {
  ModelState state = ModelState::load(test::device(), setting.model,
                                      {.path = setting.path, .lora = LoraConfig{.rank = 4, .lora_alpha = 8, .use_dora = true},
                                       .residency = setting.residency, .stream = setting.stream});
  if (!setting.moved) return state;
  std::uint64_t seed = 1;
  for (LoraLayer& layer : state.edit_lora()) {
    for (const Projection p : all_projections) {
      layer.at(p).b = test::random_values(layer.at(p).b.size(), ++seed, 0.05f);
      const auto factors = test::random_values(layer.at(p).magnitude.size(), ++seed, 0.3f);
      for (std::size_t i = 0; i < factors.size(); ++i) layer.at(p).magnitude[i] *= 1 + factors[i];
    }
  }
  return state;
}

double loss_of(Model& model, const test::TwoSegments& batch, bool base = false) {
  gpu::Recorder recorder(model.device());
  const DeviceStream stream = model.upload(recorder, batch.stream());
  const Head::Loss loss = base ? model.base_loss(recorder, stream) : model.loss(recorder, stream);
  recorder.submit();
  double sum = 0;
  for (const float value : model.device().read<float>(loss.loss)) sum += value;
  return sum / static_cast<double>(batch.labels.size());
}

struct Result {
  std::vector<float> losses, gradients, evaluated, base;
  bool operator==(const Result&) const = default;
};

// Two batches whose gradients are added up, then an evaluation with and without the adapter.
Result result_of(const Setting& setting) {
  auto& device = test::device();
  const ModelState state = state_of(setting);
  Model model(state, {.residency = setting.residency, .activations = setting.activations, .max_tokens = tokens, .max_labels = tokens});
  const LoraWeights& lora = *state.lora_mirror().train();
  const test::TwoSegments batch(tokens, 15, state.vocab_size());
  Result result;
  gpu::Recorder recorder(device);
  const DeviceStream stream = model.upload(recorder, batch.stream());
  recorder.clear(lora.grads);
  for (int pass = 0; pass < 2; ++pass) {
    const Head::Loss loss = model.loss_and_gradients(recorder, stream, {.factor = 1.0f / static_cast<float>(batch.labels.size())});
    recorder.submit();
    result.losses = device.read<float>(loss.loss);
  }
  result.gradients = device.read<float>(lora.grads);
  for (auto [base, to] : {std::pair(true, &result.base), {false, &result.evaluated}}) {
    const Head::Loss loss = base ? model.base_loss(recorder, stream) : model.loss(recorder, stream);
    recorder.submit();
    *to = device.read<float>(loss.loss);
  }
  return result;
}

TEST(DoraModel, StreamedAndCachedWeightsGiveTheSameBits) {
  for (const ProductPath path : test::product_paths()) {
    SCOPED_TRACE(test::name_of(path));
    const Result whole = result_of({.path = path});
    EXPECT_NE(whole.evaluated, whole.base);
    EXPECT_EQ(whole.losses, whole.evaluated);
    for (const Activations choice : {Activations::keep, Activations::recompute}) {
      EXPECT_TRUE(whole == result_of({.path = path, .residency = {streamed, cached, streamed, streamed}, .activations = {choice}}));
    }
  }
  if (gpu::supports(test::device().info(), gpu::HostMemory::direct)) {
    EXPECT_TRUE(result_of({}) == result_of({.residency = spread_streamed(4, 4), .stream = {.memory = gpu::HostMemory::direct}}));
  }
}

// A new adapter changes nothing, and its magnitudes are the norms of the base's rows.
TEST(DoraModel, BeginsAsTheBase) {
  const ModelState state = state_of({.moved = false});
  Model model(state, {.max_tokens = tokens, .max_labels = tokens});
  const test::TwoSegments batch(tokens, 15, state.vocab_size());
  EXPECT_NEAR(loss_of(model, batch), loss_of(model, batch, true), 1e-5);
  const Nf4Projection& w = state.layers()[2].up;
  std::vector<float> values(w.count());
  nf4_dequantize(w.packed, w.absmax, values);
  for (const std::size_t row : {0u, 77u, 767u}) {
    double sum = 0;
    for (std::size_t i = row * w.in_dim; i < (row + 1) * w.in_dim; ++i) sum += double{values[i]} * values[i];
    EXPECT_NEAR(state.lora()[2].up.magnitude[row], std::sqrt(sum), 1e-6 * std::sqrt(sum));
  }
}

// Along a random direction of all magnitudes, in a family with biases of q, k and v: the norms do not depend on magnitudes, so that
// finite differences find the whole gradient.
TEST(DoraModel, GradientsOfMagnitudesAreThoseOfTheLoss) {
  const Setting setting{.model = test::source_path("tests/golden/qwen2/model")};
  ModelState state = state_of(setting);
  Model model(state, {.max_tokens = tokens, .max_labels = tokens});
  const test::TwoSegments batch(tokens, 15, state.vocab_size());
  const LoraWeights& lora = *state.lora_mirror().train();
  gpu::Recorder recorder(test::device());
  recorder.clear(lora.grads);
  model.loss_and_gradients(recorder, model.upload(recorder, batch.stream()), {.factor = 1.0f / static_cast<float>(batch.labels.size())});
  recorder.submit();
  for (const Projection p : all_projections) {
    for (const std::uint32_t layer : {0u, state.num_layers() - 1}) {
      const auto gradient = test::download(lora.slot(layer, p).magnitude_grad), values = test::download(lora.slot(layer, p).magnitude);
      double product = 0, size = 0;
      for (const float value : gradient) size += double{value} * value;
      const auto loss_at = [&](float h) {
        std::vector<float>& magnitude = state.edit_lora()[layer].at(p).magnitude;
        for (std::size_t i = 0; i < values.size(); ++i) magnitude[i] = values[i] + h * gradient[i] / static_cast<float>(std::sqrt(size));
        return loss_of(model, batch);
      };
      for (const float value : gradient) product += double{value} * value / std::sqrt(size);
      constexpr float h = 0.03f;
      const double slope = (loss_at(h) - loss_at(-h)) / (2.0 * h);
      loss_at(0);
      EXPECT_NEAR(slope, product, 0.02 * product + 2e-5) << nibble::name_of(p) << " of layer " << layer;  // f32 losses, third derivatives
    }
  }
}

// Prompts through layers, tokens one at a time straight from NF4.
TEST(DoraModel, GeneratesWhatTheModelComputes) {
  for (const ProductPath path : test::product_paths()) {
    ModelState state = state_of({.path = path});
    Model model(state, {.max_tokens = 24, .max_labels = 24, .trainable = false});
    Generator generator(state, {.capacity = 64});
    const test::TwoSegments batch(tokens, 15, state.vocab_size());
    const auto text = std::span(batch.ids).first(24);
    const auto expect_same = [&] {
      for (const std::size_t length : {20u, 21u, 22u, 23u}) generator.logits(text.first(length));
      const auto logits = generator.logits(text);
      std::vector<std::uint32_t> position(24), begin(24, 0), end(24, 24);
      for (std::uint32_t i = 0; i < 24; ++i) position[i] = i;
      const std::uint32_t last = 23;
      gpu::Recorder recorder(test::device());
      const DeviceStream stream = model.upload(recorder, {.tokens = text, .position = position, .segment_begin = begin, .segment_end = end,
                                                          .label_rows = {&last, 1}, .labels = {&last, 1}});
      const Tensor last_logits = model.logits(recorder, model.forward(recorder, stream), stream.label_rows, 1);
      recorder.submit();
      const auto expected = test::download(last_logits);
      EXPECT_LE(test::relative_error(logits, expected), path == ProductPath::f32 ? 1e-4 : 1e-2) << test::name_of(path);
    };
    expect_same();
    for (LoraLayer& layer : state.edit_lora()) {
      for (float& value : layer.down.magnitude) value *= -1.3f;
    }
    expect_same();
  }
}

TEST(DoraModel, RefusesCheckpointsWithoutMagnitudes) {
  const ModelState state = state_of({});
  const test::TemporaryFolder folder;
  test::expect_error<UsageError>([&] { state.save_checkpoint(folder.path(), 1, 0.5); }, "magnitudes");
}

}  // namespace
}  // namespace nibble::dora_test
