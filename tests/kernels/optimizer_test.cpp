#include "nibble/base/error.h"
#include "nibble/kernels/adamw.h"
#include "nibble/kernels/grad_norm.h"
#include "tests/support/gpu_test.h"

#include <cmath>

namespace nibble::optimizer_test {
namespace {

struct Clip {
  float norm, factor;
};

Clip grad_norm(const std::vector<Tensor>& gradients, double max_norm) {
  const std::uint32_t partials = grad_norm_partials(test::device(), gradients);
  const test::GuardedTensor scratch(DType::f32, {partials}), result(DType::f32, {2});
  test::run(GradNorm{.gradients = gradients, .partials = scratch.tensor(), .norm_and_factor = result.tensor(),
                     .max_norm = max_norm});
  scratch.expect_guards_intact();
  result.expect_guards_intact();
  const auto values = test::download(result.tensor());
  return {values[0], values[1]};
}

double norm_of(std::span<const float> values) {
  double squares = 0;
  for (const float value : values) squares += double{value} * double{value};
  return std::sqrt(squares);
}

TEST(GradNorm, OddSizesAndSeveralTensors) {
  for (const std::uint32_t size : {1u, 7u, 255u, 1024u, 1025u, 70001u}) {
    const auto values = test::random_values(size, size, 3.0f);
    const auto tensor = test::upload(values, {size});
    const double norm = norm_of(values);
    EXPECT_NEAR(grad_norm({tensor}, 0).norm / norm, 1.0, 1e-6) << size;
    EXPECT_NEAR(grad_norm({tensor, tensor, tensor.view({1, size})}, 0).norm / (std::sqrt(3.0) * norm), 1.0, 1e-6) << size;
  }
}

TEST(GradNorm, FactorIsThatOfTorch) {
  const auto tensor = test::upload(std::vector<float>{3, 4}, {2});
  EXPECT_FLOAT_EQ(grad_norm({tensor}, 1.0).factor, static_cast<float>(1.0 / (5.0 + 1e-6)));
  EXPECT_EQ(grad_norm({tensor}, 5.1).factor, 1.0f);
  EXPECT_EQ(grad_norm({tensor}, 0).factor, 1.0f);
  EXPECT_EQ(grad_norm({tensor}, INFINITY).factor, 1.0f);
  EXPECT_EQ(grad_norm({test::upload(std::vector<float>(5), {5})}, 1.0).factor, 1.0f);
  EXPECT_TRUE(std::isnan(grad_norm({test::upload(std::vector<float>{1, NAN, 2}, {3})}, 1.0).norm));
}

TEST(GradNorm, ANormThatWasNotFiniteIsKeptOnRequest) {
  const Tensor good = test::upload(std::vector<float>{3, 4}, {2}), bad = test::upload(std::vector<float>{3, INFINITY}, {2});
  const Tensor partials = test::device().tensor(DType::f32, {grad_norm_partials(test::device(), {good})}, "partials");
  const Tensor result = test::device().tensor(DType::f32, {2}, "norm");
  const auto norm_after = [&](const Tensor& gradients, bool keep) {
    test::run(GradNorm{.gradients = {gradients}, .partials = partials, .norm_and_factor = result, .keep_nonfinite = keep});
    return test::download(result)[0];
  };
  EXPECT_EQ(norm_after(good, true), 5.0f);
  EXPECT_FALSE(std::isfinite(norm_after(bad, true)));
  EXPECT_FALSE(std::isfinite(norm_after(good, true)));
  EXPECT_EQ(norm_after(good, false), 5.0f);
}

TEST(GradNorm, MoreThanOneBindingStaysAccurate) {
  const std::uint32_t size = 34'000'003;  // 130 MiB
  std::vector<float> values(size);
  double squares = 0;
  for (std::uint32_t i = 0; i < size; ++i) {
    values[i] = 1e-3f * float(i * 2654435761u >> 16);
    squares += double{values[i]} * double{values[i]};
  }
  EXPECT_NEAR(grad_norm({test::upload(values, {size})}, 1.0).norm / std::sqrt(squares), 1.0, 1e-6);
}

struct Moments {
  std::vector<double> weights, first, second;
};

// torch.optim.AdamW, in double.
void reference_step(Moments& state, std::span<const float> gradients, double factor, const AdamWRule& op) {
  const double correction1 = 1 - std::pow(op.beta1, double(op.step)), correction2 = 1 - std::pow(op.beta2, double(op.step));
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    const double g = gradients[i] * factor;
    state.weights[i] *= 1 - op.learning_rate * op.weight_decay;
    state.first[i] = op.beta1 * state.first[i] + (1 - op.beta1) * g;
    state.second[i] = op.beta2 * state.second[i] + (1 - op.beta2) * g * g;
    state.weights[i] -= op.learning_rate / correction1 * state.first[i] / (std::sqrt(state.second[i] / correction2) + op.epsilon);
  }
}

TEST(AdamW, TenStepsFollowTheReference) {
  for (const std::uint32_t size : {1u, 1023u, 2049u}) {
    const auto start = test::random_values(size, 1);
    const test::GuardedTensor weights(DType::f32, {size}), first(DType::f32, {size}), second(DType::f32, {size});
    const std::vector<float> zeros(size);
    test::device().write(weights.tensor(), std::as_bytes(std::span(start)));
    test::device().write(first.tensor(), std::as_bytes(std::span(zeros)));
    test::device().write(second.tensor(), std::as_bytes(std::span(zeros)));
    Moments state{{start.begin(), start.end()}, std::vector<double>(size), std::vector<double>(size)};
    const Tensor clip = test::upload(std::vector<float>{2.0f, 0.25f}, {2});
    for (std::uint64_t step = 1; step <= 10; ++step) {
      auto gradients = test::random_values(size, 10 + step, 1e-2f);
      gradients[0] = 0;
      const AdamW op{.weights = weights.tensor(), .gradients = test::upload(gradients, {size}), .first_moment = first.tensor(),
                     .second_moment = second.tensor(), .norm_and_factor = clip,
                     .rule = {.step = step, .learning_rate = 1e-2, .weight_decay = 0.1}};
      test::run(op);
      reference_step(state, gradients, 0.25, op.rule);
    }
    weights.expect_guards_intact();
    first.expect_guards_intact();
    second.expect_guards_intact();
    const auto values = test::download(weights.tensor());
    for (std::uint32_t i = 0; i < size; ++i) {
      // Ten steps of at most 1e-2, each to within a few f32 roundings, of weights up to 1.
      EXPECT_NEAR(values[i], state.weights[i], 10 * (6e-8 + 1e-2 * 8 * 6e-8)) << i;
    }
    // A gradient of zero leaves only the decay.
    EXPECT_NEAR(values[0] / start[0], std::pow(1 - 1e-3, 10), 1e-6);
  }
}

TEST(AdamW, ANormThatIsNotFiniteChangesNothing) {
  for (const float norm : {INFINITY, NAN}) {
    const auto values = test::random_values(100, 1);
    const Tensor weights = test::upload(values, {100}), gradients = test::upload(values, {100}),
                 first = test::upload(values, {100}), second = test::upload(std::vector<float>(100, 1.0f), {100});
    test::run(AdamW{.weights = weights, .gradients = gradients, .first_moment = first, .second_moment = second,
                    .norm_and_factor = test::upload(std::vector<float>{norm, 0.0f}, {2}), .rule = {.learning_rate = 1}});
    EXPECT_EQ(test::download(weights), values);
    EXPECT_EQ(test::download(first), values);
  }
}

TEST(AdamW, MoreThanOneBinding) {
  const std::uint32_t size = 34'000'001;
  const auto make = [&] { return test::device().tensor(DType::f32, {size}, "adamw"); };
  const Tensor weights = make(), gradients = make(), first = make(), second = make();
  const std::vector<float> one = {1.0f};
  test::device().write(gradients.rows(size - 1, size), std::as_bytes(std::span(one)));
  test::run(AdamW{.weights = weights, .gradients = gradients, .first_moment = first, .second_moment = second,
                  .norm_and_factor = test::upload(std::vector<float>{1, 1}, {2}), .rule = {.learning_rate = 0.5}});
  EXPECT_NEAR(test::download(weights.rows(size - 1, size))[0], -0.5f, 1e-6f);
  EXPECT_EQ(test::download(weights.rows(size - 2, size - 1))[0], 0.0f);
  EXPECT_EQ(test::download(weights.rows(33'554'368, 33'554'500)), std::vector<float>(132));
}

TEST(AdamW, SizesMustAgree) {
  gpu::Recorder recorder(test::device());
  const Tensor a = test::upload(std::vector<float>(4), {4}), b = test::upload(std::vector<float>(5), {5});
  EXPECT_THROW(record(recorder, AdamW{.weights = a, .gradients = b, .first_moment = a, .second_moment = a,
                                      .norm_and_factor = test::upload(std::vector<float>(2), {2})}),
               Error);
}

}  // namespace
}  // namespace nibble::optimizer_test
