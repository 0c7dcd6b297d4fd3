#include "nibble/train/trainer.h"

#include "nibble/base/error.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"
#include "tests/train/reference_layer.h"

#include <cmath>
#include <limits>
#include <numeric>

namespace nibble::trainer_test {
namespace {

using test::Matrix;

constexpr std::uint32_t rows = 5, layer = 2;

ModelState load_tiny() {
  return ModelState::load(test::device(), test::source_path("models/tiny-qwen3"),
                          {.path = ProductPath::f32, .adapter = test::source_path("tests/golden/tiny/adapter_nonzero")});
}

Matrix doubles(std::span<const float> values) { return {values.begin(), values.end()}; }
std::vector<float> floats(const Matrix& values) { return {values.begin(), values.end()}; }

double dot(const Matrix& a, std::span<const float> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// Some elements of a vector of this size, the same each time.
std::vector<std::size_t> some_of(std::size_t size) { return {0, size / 3, size / 2 + 1, size - 1}; }

// Each gradient agrees with the central difference of `loss`: the differences are exact to about h^2 = 1e-8 of the curvature
// and the kernels to some 1e-6 of the largest gradient.
void expect_differences(std::span<const float> gradient, const std::vector<double>& differences, std::string_view name) {
  double largest = 0;
  for (const float value : gradient) largest = std::max(largest, std::fabs(double{value}));
  const auto indices = some_of(gradient.size());
  for (std::size_t i = 0; i < indices.size(); ++i) {
    EXPECT_NEAR(gradient[indices[i]], differences[i], 2e-4 * largest) << name << " " << indices[i];
  }
}

// Central differences of loss(adapters with one number of `numbers` of the projection changed).
std::vector<double> adapter_differences(const LoraLayer& lora, Projection p, std::vector<float> LoraProjection::* numbers,
                                        const std::function<double(const LoraLayer&)>& loss) {
  const float h = 0x1p-9f;
  std::vector<double> result;
  for (const std::size_t i : some_of((lora.at(p).*numbers).size())) {
    LoraLayer changed = lora;
    float& value = (changed.at(p).*numbers)[i];
    const float before = value;
    value = before + h;
    const double up = loss(changed), above = value;
    value = before - h;
    result.push_back((up - loss(changed)) / (above - double{value}));
  }
  return result;
}

struct Data {
  std::vector<float> hidden, d_output;
  explicit Data(const ModelState& state)
      : hidden(test::random_values(rows * state.hidden_size(), 1)), d_output(test::random_values(rows * state.hidden_size(), 2)) {}
};

TrainerOptions small() { return {.model = {.max_tokens = 16, .max_labels = 16}, .adamw = {.max_grad_norm = 0}}; }

TEST(TrainerParts, LoraForwardAndBackwardAreTheFormula) {
  ModelState state = load_tiny();
  Trainer trainer(state, small());
  const LoraProjection lora = state.lora()[layer].down;
  const auto x = test::random_values(rows * lora.in_dim, 1), dy = test::random_values(rows * lora.out_dim, 2);
  const double scaling = state.lora_config().scaling();
  Matrix y(rows * lora.out_dim), d_a(lora.a.size()), d_b(lora.b.size()), d_x(x.size());
  for (std::uint32_t t = 0; t < rows; ++t) {
    for (std::uint32_t r = 0; r < lora.rank; ++r) {
      double h = 0, dh = 0;
      for (std::uint32_t i = 0; i < lora.in_dim; ++i) h += double{x[t * lora.in_dim + i]} * lora.a[r * lora.in_dim + i];
      for (std::uint32_t o = 0; o < lora.out_dim; ++o) {
        y[t * lora.out_dim + o] += scaling * h * lora.b[o * lora.rank + r];
        dh += scaling * dy[t * lora.out_dim + o] * lora.b[o * lora.rank + r];
        d_b[o * lora.rank + r] += scaling * dy[t * lora.out_dim + o] * h;
      }
      for (std::uint32_t i = 0; i < lora.in_dim; ++i) {
        d_a[r * lora.in_dim + i] += dh * x[t * lora.in_dim + i];
        d_x[t * lora.in_dim + i] += dh * lora.a[r * lora.in_dim + i];
      }
    }
  }
  // f32 sums of up to 1000 terms: 2^-24 sqrt(K) twice.
  EXPECT_LT(test::relative_error(trainer.lora_forward(layer, Projection::down, x), floats(y)), 5e-6);
  const LoraGradients gradients = trainer.lora_backward(layer, Projection::down, x, dy);
  EXPECT_LT(test::relative_error(gradients.d_a, floats(d_a)), 5e-6);
  EXPECT_LT(test::relative_error(gradients.d_b, floats(d_b)), 5e-6);
  EXPECT_LT(test::relative_error(gradients.d_x, floats(d_x)), 5e-6);
}

TEST(TrainerParts, FfnBackwardIsTheDerivativeOfTheReference) {
  ModelState state = load_tiny();
  Trainer trainer(state, small());
  const Data data(state);
  const LoraLayer lora = state.lora()[layer];
  const Matrix input = doubles(data.hidden);
  const auto d_input = trainer.ffn_backward(layer, data.hidden, data.d_output);
  expect_differences(d_input,
                     test::finite_differences(
                         [&](const Matrix& x) { return dot(test::reference_mlp(state, layer, x, lora), data.d_output); }, input,
                         some_of(input.size())),
                     "input");
  for (const Projection p : {Projection::gate, Projection::up, Projection::down}) {
    const LoraGradients gradients = trainer.gradients(layer, p);
    const auto loss = [&](const LoraLayer& changed) { return dot(test::reference_mlp(state, layer, input, changed), data.d_output); };
    expect_differences(gradients.d_a, adapter_differences(lora, p, &LoraProjection::a, loss), name_of(p));
    expect_differences(gradients.d_b, adapter_differences(lora, p, &LoraProjection::b, loss), name_of(p));
  }
}

TEST(TrainerParts, LayerTrainStepIsTheReferencesLayer) {
  ModelState state = load_tiny();
  Trainer trainer(state, small());
  const Data data(state);
  const LoraLayer lora = state.lora()[layer];
  const auto others = state.lora()[layer + 1];
  const Matrix input = doubles(data.hidden);
  const double rate = 1e-3;
  const LayerResult result = trainer.layer_train_step(layer, data.hidden, data.d_output, rate);
  EXPECT_LT(test::relative_error(result.output, floats(test::reference_layer(state, layer, input, lora))), 5e-6);
  const auto loss_of_input = [&](const Matrix& x) { return dot(test::reference_layer(state, layer, x, lora), data.d_output); };
  expect_differences(result.d_input, test::finite_differences(loss_of_input, input, some_of(input.size())), "input");
  double squares = 0;
  for (const Projection p : all_projections) {
    const LoraGradients gradients = trainer.gradients(layer, p);
    const auto loss = [&](const LoraLayer& changed) { return dot(test::reference_layer(state, layer, input, changed), data.d_output); };
    expect_differences(gradients.d_a, adapter_differences(lora, p, &LoraProjection::a, loss), name_of(p));
    expect_differences(gradients.d_b, adapter_differences(lora, p, &LoraProjection::b, loss), name_of(p));
    for (const float value : gradients.d_a) squares += double{value} * value;
    for (const float value : gradients.d_b) squares += double{value} * value;
    // The first update of AdamW moves each number by the rate against the sign of its gradient.
    const LoraProjection& after = state.lora()[layer].at(p);
    for (std::size_t i = 0; i < after.a.size(); ++i) {
      const double g = gradients.d_a[i];
      EXPECT_NEAR(after.a[i], lora.at(p).a[i] - rate * g / (std::fabs(g) + 1e-8), 1e-6);
      EXPECT_NEAR(after.m_a[i], 0.1 * g, 1e-6 * std::fabs(g) + 1e-12);
    }
  }
  EXPECT_NEAR(result.grad_norm, std::sqrt(squares), 1e-5 * std::sqrt(squares));
  EXPECT_EQ(trainer.current_step(), 1u);
  EXPECT_EQ(state.lora()[layer + 1].q.a, others.q.a) << "only this layer's adapters were updated";
  EXPECT_EQ(state.lora()[layer + 1].q.m_a, others.q.m_a);
}

TEST(TrainerParts, ALayersStepThatIsNotFiniteLeavesLaterOnesAlone) {
  ModelState state = load_tiny();
  Trainer trainer(state, small());
  const Data data(state);
  std::vector<float> broken = data.d_output;
  broken[5] = std::numeric_limits<float>::infinity();
  const auto before = state.lora()[layer].q.a;
  EXPECT_FALSE(std::isfinite(trainer.layer_train_step(layer, data.hidden, broken, 1e-3).grad_norm));
  EXPECT_EQ(state.lora()[layer].q.a, before);
  EXPECT_TRUE(std::isfinite(trainer.layer_train_step(layer, data.hidden, data.d_output, 1e-3).grad_norm));
  EXPECT_NE(state.lora()[layer].q.a, before);
}

TEST(TrainerParts, ArraysOfAnotherSizeAreRefused) {
  ModelState state = load_tiny();
  Trainer trainer(state, small());
  const std::vector<float> odd(state.hidden_size() + 1), many(17 * state.hidden_size());
  test::expect_error<UsageError>([&] { trainer.ffn_backward(0, odd, odd); }, "input has", "1 to 16 rows of");
  test::expect_error<UsageError>([&] { trainer.ffn_backward(0, many, many); }, "1 to 16 rows of");
  test::expect_error<UsageError>([&] { trainer.layer_train_step(99, many, many, 0); }, "Layer 99", "has 4");
  test::expect_error<UsageError>([&] { trainer.lora_forward(99, Projection::q, many); }, "Layer 99");
}

// One sequence whose every next token is a label.
struct Sequence {
  std::vector<std::uint32_t> tokens, position, begin, end, label_rows, labels;
  Sequence(std::uint32_t count, std::uint64_t seed) : position(count), begin(count), end(count, count), label_rows(count - 1) {
    Rng rng(seed);
    for (std::uint32_t i = 0; i < count; ++i) tokens.push_back(rng.below(4096));
    std::iota(position.begin(), position.end(), 0u);
    std::iota(label_rows.begin(), label_rows.end(), 0u);
    labels.assign(tokens.begin() + 1, tokens.end());
  }
  TokenStream stream() const {
    return {.tokens = tokens, .position = position, .segment_begin = begin, .segment_end = end, .label_rows = label_rows, .labels = labels};
  }
};

TEST(Trainer, WithLoraAndWithAdamWTakeEffect) {
  ModelState state = ModelState::load(test::device(), test::source_path("models/tiny-qwen3"), {.path = ProductPath::f32});
  Trainer trainer(state, small());
  test::expect_error<UsageError>([&] { trainer.model(); }, "no adapter");
  trainer.with_lora(3, 6).with_adamw({.adam_beta1 = 0.5, .max_grad_norm = 0});
  EXPECT_EQ(state.lora_config().rank, 3u);
  EXPECT_EQ(state.lora_config().scaling(), 2.0);
  EXPECT_EQ(trainer.adapter_info().find(test::device().info().name), 0u) << trainer.adapter_info();
  const Sequence sequence(12, 1);
  const TokenStream streams[] = {sequence.stream()};
  const StepResult result = trainer.full_train_step(streams, 1e-3);
  EXPECT_EQ(trainer.current_step(), 1u);
  EXPECT_EQ(result.labels, 11u);
  const auto& moments = state.lora()[0].q;
  const auto gradients = trainer.gradients(0, Projection::q);
  for (std::size_t i = 0; i < moments.m_b.size(); ++i) EXPECT_FLOAT_EQ(moments.m_b[i], 0.5f * gradients.d_b[i]);
}

TEST(Trainer, TheOriginalRecipe) {
  const AdamWOptions recipe = adamw_recipe("original");
  EXPECT_EQ(recipe.adam_beta1, 0.9);
  EXPECT_EQ(recipe.adam_beta2, 0.95);
  EXPECT_EQ(recipe.adam_epsilon, 1e-8);
  EXPECT_EQ(recipe.weight_decay, 0.1);
  test::expect_error<UsageError>([] { adamw_recipe("other"); }, "other", "pytorch", "original");
}

TEST(Trainer, BatchesOfOneUpdateAreOneBatch) {
  const Sequence first(9, 1), second(14, 2);
  const auto adapter_after = [&](bool together) {
    ModelState state = load_tiny();
    Trainer trainer(state, small());
    if (together) {
      // The second sequence moved behind the first.
      Sequence both = first;
      for (std::size_t i = 0; i < second.tokens.size(); ++i) {
        both.tokens.push_back(second.tokens[i]);
        both.position.push_back(second.position[i]);
        both.begin.push_back(9);
        both.end.push_back(9 + 14);
      }
      for (const std::uint32_t row : second.label_rows) both.label_rows.push_back(9 + row);
      both.labels.insert(both.labels.end(), second.labels.begin(), second.labels.end());
      const TokenStream streams[] = {both.stream()};
      Trainer wide(state, {.model = {.max_tokens = 23, .max_labels = 23}, .adamw = {.max_grad_norm = 0}});
      wide.full_train_step(streams, 1e-3);
    } else {
      const TokenStream streams[] = {first.stream(), second.stream()};
      trainer.full_train_step(streams, 1e-3);
    }
    return state.lora()[1].up.m_a;
  };
  EXPECT_LT(test::relative_error(adapter_after(false), adapter_after(true)), 1e-5);
}

TEST(Trainer, NoiseIsFreshInEachUpdateAndSeeded) {
  const Sequence sequence(12, 1);
  const TokenStream streams[] = {sequence.stream()};
  const auto losses = [&](double alpha, std::uint64_t seed) {
    ModelState state = load_tiny();
    TrainerOptions options = small();
    options.neftune_alpha = alpha;
    options.seed = seed;
    Trainer trainer(state, options);
    std::vector<double> result;
    for (int i = 0; i < 2; ++i) result.push_back(trainer.full_train_step(streams, 0.0).loss);  // nothing is learned
    return result;
  };
  const auto plain = losses(0, 1), noisy = losses(5, 1);
  EXPECT_EQ(plain[0], plain[1]);
  EXPECT_NE(noisy[0], plain[0]);
  EXPECT_NE(noisy[0], noisy[1]);
  EXPECT_EQ(losses(5, 1), noisy);
  EXPECT_NE(losses(5, 2)[0], noisy[0]);
}

TEST(Trainer, NoiseIsNotInEvaluation) {
  ModelState state = load_tiny();
  TrainerOptions options = small();
  options.neftune_alpha = 5;
  Trainer noisy(state, options), plain(state, small());
  const Sequence sequence(12, 1);
  const auto loss = [&](Trainer& trainer) {
    gpu::Recorder recorder(test::device());
    const auto result = trainer.model().loss(recorder, trainer.model().upload(recorder, sequence.stream()));
    recorder.submit();
    return test::download(result.loss);
  };
  EXPECT_EQ(loss(noisy), loss(plain));
}

TEST(Trainer, AnUpdateThatIsNotFiniteChangesNothing) {
  ModelState state = load_tiny();
  Trainer trainer(state, small());
  state.edit_lora()[0].q.b[0] = std::numeric_limits<float>::infinity();
  const auto before = state.lora()[1].up.a;
  const Sequence sequence(12, 1);
  const TokenStream streams[] = {sequence.stream()};
  test::expect_error<Diverged>([&] { trainer.full_train_step(streams, 1e-3); }, "Update 1");
  EXPECT_EQ(trainer.current_step(), 0u);
  EXPECT_EQ(state.lora()[1].up.a, before);
}

TEST(Trainer, UpdatesOnTheirWayTogetherGiveTheSameBytes) {
  const Sequence sequences[] = {Sequence(12, 1), Sequence(16, 2), Sequence(9, 3), Sequence(12, 4)};
  const auto losses_and_adapter = [&](bool together) {
    ModelState state = load_tiny();
    TrainerOptions options = small();
    options.neftune_alpha = 5;
    Trainer trainer(state, options);
    std::vector<double> losses;
    for (const Sequence& sequence : sequences) {
      const TokenStream streams[] = {sequence.stream()};
      trainer.begin_step(streams, 1e-3);
      if (trainer.steps_begun() > (together ? trainer.steps_ahead() : 0)) losses.push_back(trainer.end_step().loss);
    }
    while (trainer.steps_begun() > 0) losses.push_back(trainer.end_step().loss);
    EXPECT_EQ(trainer.current_step(), std::size(sequences));
    return std::pair(losses, state.lora()[1].up.a);
  };
  const auto apart = losses_and_adapter(false);
  EXPECT_EQ(apart.first.size(), std::size(sequences));
  EXPECT_EQ(losses_and_adapter(true), apart);
}

TEST(Trainer, WhatBeganAfterAFailedUpdateIsDropped) {
  ModelState state = load_tiny();
  Trainer trainer(state, small());
  const Sequence sequence(12, 1);
  const TokenStream streams[] = {sequence.stream()};
  const float finite = std::exchange(state.edit_lora()[0].q.b[0], std::numeric_limits<float>::infinity());
  const auto before = state.lora()[1].up;
  trainer.begin_step(streams, 1e-3);
  // The second update alone would be finite.
  gpu::Tensor b = state.lora_mirror().on_device()->slot(0, Projection::q).b;
  test::device().write(b, std::as_bytes(std::span(&finite, 1)));
  trainer.begin_step(streams, 1e-3);
  test::expect_error<UsageError>([&] { trainer.begin_step(streams, 1e-3); }, "2 updates have begun");
  EXPECT_FALSE(std::isfinite(trainer.end_step().grad_norm));
  EXPECT_EQ(trainer.steps_begun(), 0u);
  EXPECT_EQ(trainer.current_step(), 0u);
  EXPECT_EQ(state.lora()[1].up.a, before.a);
  EXPECT_EQ(state.lora()[1].up.m_a, before.m_a);
  // And the trainer goes on.
  state.edit_lora()[0].q.b[0] = finite;
  EXPECT_TRUE(std::isfinite(trainer.full_train_step(streams, 1e-3).loss));
  EXPECT_EQ(trainer.current_step(), 1u);
  EXPECT_NE(state.lora()[1].up.a, before.a);
}

// Lengths that no vector divides have kernels of their own, made when the first of them comes.
TEST(Trainer, NoPipelineIsMadeAfterTheFirstUpdate) {
  for (const ProductPath path : {ProductPath::f32, ProductPath::f16, ProductPath::matrix}) {
    if (!supports(test::device().info(), path)) continue;
    gpu::Device device;
    ModelState state = ModelState::load(device, test::source_path("models/tiny-qwen3"),
                                        {.path = path, .adapter = test::source_path("tests/golden/tiny/adapter_nonzero")});
    Trainer trainer(state, {.model = {.max_tokens = 64, .max_labels = 64}});
    std::uint64_t made = 0;
    for (const std::uint32_t tokens : {48u, 48u, 64u}) {
      const Sequence sequence(tokens, 1);
      const TokenStream streams[] = {sequence.stream()};
      trainer.full_train_step(streams, 1e-3);
      if (made == 0) made = device.pipelines_made();
      EXPECT_GT(made, 0u);
      EXPECT_EQ(device.pipelines_made(), made) << tokens << " tokens, path " << static_cast<int>(path);
    }
  }
}

}  // namespace
}  // namespace nibble::trainer_test
