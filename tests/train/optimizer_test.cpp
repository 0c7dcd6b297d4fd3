#include "nibble/train/optimizer.h"

#include "nibble/base/dynamic_map.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

#include <cmath>

namespace nibble::optimizer_test {
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
  Moments moments(test::device(), small.weights.params.size(), {}, "moments");
  optimizer.record_step(recorder, small.weights, moments, rate, 1);
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

// What an update makes of an adapter, held against formulas in double that start from what stood there before it.
class FollowedAdapter {
 public:
  explicit FollowedAdapter(const AdamWOptions& options)
      : options_(options), moments_(test::device(), small_.weights.params.size(), {.kind = MomentKind::eight_bit, .piece_blocks = 64}, "moments"),
        optimizer_(test::device(), options) {}

  // Of all layers, or of one.
  void step(std::uint64_t number, std::optional<std::uint32_t> layer) {
    const auto slopes = test::random_values(small_.weights.grads.size(), 50 + number, 1e-2f);
    test::device().write(small_.weights.grads, std::as_bytes(std::span(slopes)));
    clear_gaps();
    const Flat before = read();
    const auto gradients = test::download(small_.weights.grads);
    gpu::Recorder recorder(test::device());
    if (layer) {
      optimizer_.record_layer_step(recorder, small_.weights, moments_, *layer, rate, number);
    } else {
      optimizer_.record_step(recorder, small_.weights, moments_, rate, number);
    }
    recorder.submit();
    const Flat after = read();
    for (std::uint32_t i = 0; i < small_.weights.layers.size(); ++i) {
      for (const LoraSlot& slot : small_.weights.layers[i]) {
        if (!slot.used()) continue;
        const bool takes_part = !layer || layer == i;
        expect_matrix(slot.a, takes_part, rate, number, gradients, before, after);
        expect_matrix(slot.b, takes_part, rate * options_.loraplus_ratio, number, gradients, before, after);
      }
    }
  }

 private:
  static constexpr double rate = 1e-2;

  struct Flat {
    std::vector<float> weights, m, v;
  };
  Flat read() const {
    return {test::download(small_.weights.params), moments_.values(Moments::Which::first), moments_.values(Moments::Which::second)};
  }

  // As kernels leave them.
  void clear_gaps() {
    LoraAdapter values = download_lora(test::device(), small_.weights.grads, small_.form);
    upload_flat(test::device(), small_.weights.grads, values);
  }

  void expect_matrix(const gpu::Tensor& matrix, bool takes_part, double learning_rate, std::uint64_t number,
                     const std::vector<float>& gradients, const Flat& before, const Flat& after) const {
    const std::size_t begin = matrix.offset() / sizeof(float), end = begin + matrix.size();
    for (std::size_t block = begin; block < end; block += moment_block) {
      const std::size_t last = std::min<std::size_t>(end, block + moment_block);
      double largest_m = 0, largest_v = 0;
      std::vector<double> m, v;
      for (std::size_t i = block; i < last; ++i) {
        const double g = gradients[i];
        m.push_back(options_.adam_beta1 * before.m[i] + (1 - options_.adam_beta1) * g);
        v.push_back(options_.adam_beta2 * before.v[i] + (1 - options_.adam_beta2) * g * g);
        largest_m = std::max(largest_m, std::fabs(m.back()));
        largest_v = std::max(largest_v, v.back());
      }
      for (std::size_t i = block; i < last; ++i) {
        if (!takes_part) {
          ASSERT_EQ(after.weights[i], before.weights[i]) << i;
          ASSERT_EQ(after.m[i], before.m[i]) << i;
          ASSERT_EQ(after.v[i], before.v[i]) << i;
          continue;
        }
        const double m_hat = m[i - block] / (1 - std::pow(options_.adam_beta1, number)), v_hat = v[i - block] / (1 - std::pow(options_.adam_beta2, number));
        const double step = learning_rate * m_hat / (std::sqrt(v_hat) + options_.adam_epsilon);
        // A few f32 roundings of the weight and of the step.
        ASSERT_NEAR(after.weights[i], before.weights[i] * (1 - learning_rate * options_.weight_decay) - step, 2e-7 + 1e-5 * std::fabs(step)) << i;
        expect_nearest(dynamic_map(), m[i - block] / largest_m, after.m[i] / largest_m);
        if (v[i - block] / largest_v > unsigned_dynamic_map()[1]) expect_nearest(unsigned_dynamic_map(), v[i - block] / largest_v, after.v[i] / largest_v);
      }
    }
  }

  // `found` is the entry next to `share`, by f32 roundings.
  static void expect_nearest(const std::array<float, 256>& map, double share, double found) {
    double least = INFINITY;
    for (const float entry : map) least = std::min(least, std::fabs(entry - share));
    EXPECT_LE(std::fabs(found - share), least + 1e-6 * std::fabs(share)) << share;
  }

  SmallAdapter small_;
  AdamWOptions options_;
  Moments moments_;
  Optimizer optimizer_;
};

// Rank 3 lets matrices end within blocks of 256, none of which holds two.
TEST(Optimizer, MomentsOf8BitsFollowTheReferenceAtBothRates) {
  FollowedAdapter adapter({.weight_decay = 0.1, .max_grad_norm = 0, .loraplus_ratio = 16});
  for (std::uint64_t number = 1; number <= 4; ++number) adapter.step(number, {});
}

TEST(Optimizer, MomentsOf8BitsFollowTheReferenceInStepsOfALayer) {
  FollowedAdapter adapter({.weight_decay = 0.1, .max_grad_norm = 0, .loraplus_ratio = 4});
  for (std::uint64_t number = 1; number <= 4; ++number) adapter.step(number, number % 3);
  adapter.step(5, {});
}

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
}  // namespace nibble::optimizer_test
