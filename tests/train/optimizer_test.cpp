#include "nibble/train/optimizer.h"

#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

#include <cmath>

namespace nibble {
namespace {

// An adapter of two projections with values and gradients.
struct SmallAdapter {
  ModelConfig config = read_model_config(test::source_path("models/tiny-qwen3"));
  LoraAdapter form, gradients;
  LoraWeights weights;

  SmallAdapter() {
    form = make_lora_adapter(config, {.rank = 3, .target_modules = {Projection::q, Projection::down}});
    gradients = form;
    std::uint64_t seed = 0;
    for_each_matrix([&](std::vector<float>& values, std::vector<float>& slopes) {
      values = test::random_values(values.size(), ++seed);
      slopes = test::random_values(slopes.size(), ++seed, 1e-2f);
    });
    weights = upload_lora(test::device(), config, form, true);
    upload_flat(test::device(), weights.grads, gradients);
  }

  template <typename Visit>
  void for_each_matrix(Visit&& visit) {
    for (std::uint32_t layer = 0; layer < form.layers.size(); ++layer) {
      for (const Projection p : form.config.target_modules) {
        for (const LoraMatrix matrix : {LoraMatrix::a, LoraMatrix::b}) {
          visit(form.at(layer, p).matrix(matrix), gradients.at(layer, p).matrix(matrix));
        }
      }
    }
  }

  // The first update in double, without clipping: the moments' corrections leave the gradient and its magnitude.
  static double after_first_step(double value, double gradient, double rate, const AdamWOptions& o) {
    return value * (1 - rate * o.weight_decay) - rate * gradient / (std::fabs(gradient) + o.adam_epsilon);
  }
};

void expect_first_step(double ratio) {
  SmallAdapter small;
  const AdamWOptions options{.weight_decay = 0.1, .max_grad_norm = 0, .loraplus_ratio = ratio};
  Optimizer optimizer(test::device(), options);
  gpu::Recorder recorder(test::device());
  constexpr double rate = 1e-2;
  optimizer.record_step(recorder, small.weights, rate, 1);
  recorder.submit();
  const LoraAdapter after = download_lora(test::device(), small.weights.params, small.form);
  for (std::uint32_t layer = 0; layer < after.layers.size(); ++layer) {
    for (const Projection p : small.form.config.target_modules) {
      for (const LoraMatrix matrix : {LoraMatrix::a, LoraMatrix::b}) {
        const double matrix_rate = matrix == LoraMatrix::b ? rate * ratio : rate;
        const auto& before = small.form.at(layer, p).matrix(matrix);
        const auto& slopes = small.gradients.at(layer, p).matrix(matrix);
        const auto& values = after.at(layer, p).matrix(matrix);
        for (std::size_t i = 0; i < values.size(); ++i) {
          // A few f32 roundings of the weight and of the step.
          EXPECT_NEAR(values[i], SmallAdapter::after_first_step(before[i], slopes[i], matrix_rate, options),
                      2e-7 + matrix_rate * 1e-6)
              << layer << " " << name_of(p) << " " << i;
        }
      }
    }
  }
}

TEST(Optimizer, AAndBLearnAlike) { expect_first_step(1.0); }
TEST(Optimizer, BLearnsFasterUnderLoraPlus) { expect_first_step(16.0); }

TEST(LoraWeights, EveryAComesBeforeEveryB) {
  const SmallAdapter small;
  for (const auto& layer : small.weights.layers) {
    for (const LoraSlot& slot : layer) {
      if (!slot.used()) continue;
      EXPECT_LT(slot.a.offset() / sizeof(float), small.weights.b_begin);
      EXPECT_GE(slot.b.offset() / sizeof(float), small.weights.b_begin);
    }
  }
}

TEST(LoraWeights, ElementsAreNamedWhereTheyLie) {
  const SmallAdapter small;
  const LoraSlot& slot = small.weights.slot(2, Projection::down);
  EXPECT_EQ(describe_element(small.weights, slot.a_grad.offset() / sizeof(float)),
            " in the gradient of model.layers.2.mlp.down_proj.lora_A");
  EXPECT_EQ(describe_element(small.weights, slot.b_grad.offset() / sizeof(float) + slot.b_grad.size() - 1),
            " in the gradient of model.layers.2.mlp.down_proj.lora_B");
  EXPECT_EQ(describe_element(small.weights, small.weights.b_begin),
            " in the gradient of model.layers.0.self_attn.q_proj.lora_B");
  EXPECT_EQ(describe_element(small.weights, small.weights.params.size()), "");
}

}  // namespace
}  // namespace nibble
