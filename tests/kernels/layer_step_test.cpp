#include "nibble/kernels/layer_step.h"

#include "nibble/base/nf4_table.h"
#include "nibble/gpu/together.h"
#include "tests/support/gpu_test.h"

#include <cmath>

namespace nibble::layer_step_test {
namespace {

using Vector = std::vector<double>;

constexpr float eps = 1e-6f;
constexpr std::uint32_t position = 5, positions = 16, keys_before = 2;  // rows of the caches that are not met

struct Case {
  LayerStepShape shape;
  float norms = 1, values = 1;  // sizes of the norms' weights and of the input
  std::uint32_t keys = 8, rows_left = 2;  // of the caches: met, and behind them
  std::uint32_t new_key() const { return keys_before + keys - 1; }
  std::uint32_t capacity() const { return new_key() + 1 + rows_left; }
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << fmt::format("hidden {} intermediate {} heads {} {} of {} head norm {} bias {} norms {} values {} keys {}", c.shape.hidden, c.shape.intermediate,
                            c.shape.heads, c.shape.key_heads, c.shape.head_dim, c.shape.head_norm, c.shape.bias, c.norms, c.values, c.keys);
}

// A weight of random codes.
struct Matrix {
  Matrix(std::uint32_t rows, std::uint32_t inputs, std::uint64_t seed)
      : columns(inputs), bytes(std::size_t{rows} * columns / 2), absmax(test::random_values(std::size_t{rows} * columns / nf4_block, seed + 1, 0.2f)) {
    Rng rng(seed);
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(rng.below(256));
    for (std::size_t i = 0; i < 2 * bytes.size(); ++i) {
      values.push_back(double{nf4_codes[i % 2 == 0 ? bytes[i / 2] >> 4 : bytes[i / 2] & 15u]} * absmax[i / nf4_block]);
    }
  }

  std::uint32_t words() const { return aligned(bytes.size() / 4) + aligned(absmax.size()); }

  // In a room from word `first` on.
  Nf4 placed(const Tensor& room, std::uint32_t first) const {
    const Tensor packed = room.part(first, {static_cast<std::uint32_t>(bytes.size() / 4)}), rest = room.part(first + aligned(bytes.size() / 4), {static_cast<std::uint32_t>(absmax.size())});
    const Nf4 nf4{.packed = packed, .absmax = {room.buffer(), rest.offset(), DType::f32, {rest.dim(0)}}};
    test::device().write(nf4.packed, std::as_bytes(std::span(bytes)));
    test::device().write(nf4.absmax, std::as_bytes(std::span(absmax)));
    return nf4;
  }

  Vector times(const Vector& x) const {
    Vector y(values.size() / columns);
    for (std::size_t i = 0; i < values.size(); ++i) y[i / columns] += values[i] * x[i % columns];
    return y;
  }

  // Where bindings may begin.
  static std::uint32_t aligned(std::size_t count) { return static_cast<std::uint32_t>((count + 63) / 64 * 64); }

  std::uint32_t columns;
  std::vector<std::uint8_t> bytes;
  std::vector<float> absmax;
  Vector values;
};

Vector normed(std::span<const double> x, std::span<const float> weight) {
  double squares = 0;
  for (const double value : x) squares += value * value;
  Vector y;
  for (std::size_t i = 0; i < x.size(); ++i) y.push_back(x[i] * weight[i] / std::sqrt(squares / static_cast<double>(x.size()) + double{eps}));
  return y;
}

Vector sum(Vector a, const Vector& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

std::vector<float> random_turns(std::uint32_t head_dim) {
  std::vector<float> turns;
  for (const float angle : test::random_values(std::size_t{positions} * head_dim / 2, 9, 3.0f)) turns.push_back(std::cos(angle)), turns.push_back(std::sin(angle));
  return turns;
}

// A layer, and what it comes to in double.
struct Layer {
  Layer(const Case& c, std::uint64_t seed)
      : s(c.shape),
        new_key(c.new_key()),
        capacity(c.capacity()),
        qkv((s.heads + 2 * s.key_heads) * s.head_dim, s.hidden, seed + 10),
        o(s.hidden, s.heads * s.head_dim, seed + 20),
        gate_up(2 * s.intermediate, s.hidden, seed + 30),
        down(s.hidden, s.intermediate, seed + 40),
        attention_norm(test::random_values(s.hidden, seed + 2, c.norms)),
        mlp_norm(test::random_values(s.hidden, seed + 3, c.norms)),
        q_norm(test::random_values(s.head_dim, seed + 4, 2.0f)),
        k_norm(test::random_values(s.head_dim, seed + 5, 2.0f)),
        bias(test::random_values((s.heads + 2 * s.key_heads) * s.head_dim, seed + 6)),
        cached_keys(test::random_values(std::size_t{s.key_heads} * capacity * s.head_dim, seed + 7)),
        cached_values(test::random_values(std::size_t{s.key_heads} * capacity * s.head_dim, seed + 8)),
        turns(random_turns(s.head_dim)) {}

  // A query or a key, normed and turned.
  Vector turned(std::span<const double> head, std::span<const float> norm) const {
    const Vector x = s.head_norm ? normed(head, norm) : Vector(head.begin(), head.end());
    Vector y(x.size());
    for (std::size_t d = 0; d < x.size() / 2; ++d) {
      const double a = x[d], b = x[d + x.size() / 2], cosine = turns[position * x.size() + 2 * d], sine = turns[position * x.size() + 2 * d + 1];
      y[d] = a * cosine - b * sine, y[d + x.size() / 2] = b * cosine + a * sine;
    }
    return y;
  }

  Vector attended(const Vector& projected) const {
    const std::uint32_t dim = s.head_dim;
    const auto head = [&](std::uint32_t i) { return std::span(projected).subspan(i * dim, dim); };
    Vector result;
    for (std::uint32_t h = 0; h < s.heads; ++h) {
      const std::uint32_t group = h * s.key_heads / s.heads;
      const Vector query = turned(head(h), q_norm), key = turned(head(s.heads + group), k_norm);
      Vector weighted(dim);
      std::vector<double> scores;
      for (std::uint32_t row = keys_before; row <= new_key; ++row) {
        double score = 0;
        for (std::uint32_t d = 0; d < dim; ++d) score += query[d] * (row == new_key ? key[d] : cached_keys[(group * capacity + row) * dim + d]);
        scores.push_back(score / std::sqrt(dim));
      }
      const double largest = *std::max_element(scores.begin(), scores.end());
      double total = 0;
      for (std::uint32_t i = 0; i < scores.size(); ++i) {
        const std::uint32_t row = keys_before + i;
        const double weight = std::exp(scores[i] - largest);
        total += weight;
        for (std::uint32_t d = 0; d < dim; ++d) {
          weighted[d] += weight * (row == new_key ? head(s.heads + s.key_heads + group)[d] : cached_values[(group * capacity + row) * dim + d]);
        }
      }
      for (const double value : weighted) result.push_back(value / total);
    }
    return result;
  }

  Vector of(const Vector& x) const {
    Vector projected = qkv.times(normed(x, attention_norm));
    if (s.bias) projected = sum(projected, Vector(bias.begin(), bias.end()));
    const Vector middle = sum(x, o.times(attended(projected)));
    const Vector both = gate_up.times(normed(middle, mlp_norm));
    Vector gated;
    for (std::uint32_t i = 0; i < s.intermediate; ++i) gated.push_back(both[i] / (1 + std::exp(-both[i])) * both[s.intermediate + i]);
    return sum(middle, down.times(gated));
  }

  LayerStepVectors vectors() const {
    return {.attention_norm = test::upload(attention_norm, {s.hidden}), .mlp_norm = test::upload(mlp_norm, {s.hidden}),
            .q_norm = s.head_norm ? test::upload(q_norm, {s.head_dim}) : Tensor{}, .k_norm = s.head_norm ? test::upload(k_norm, {s.head_dim}) : Tensor{},
            .qkv_bias = s.bias ? test::upload(bias, {static_cast<std::uint32_t>(bias.size())}) : Tensor{}};
  }

  std::uint32_t words() const { return qkv.words() + o.words() + gate_up.words() + down.words(); }
  std::array<Nf4, 4> weights(const Tensor& room) const {
    return {qkv.placed(room, 0), o.placed(room, qkv.words()), gate_up.placed(room, qkv.words() + o.words()), down.placed(room, words() - down.words())};
  }

  LayerStepShape s;
  std::uint32_t new_key, capacity;
  Matrix qkv, o, gate_up, down;
  std::vector<float> attention_norm, mlp_norm, q_norm, k_norm, bias, cached_keys, cached_values, turns;
};

// Layers that follow one another; the first of them is the token's second.
struct Layers {
  Layers(const Case& c, std::uint32_t count) : input(test::random_values(c.shape.hidden, 1, c.values)) {
    for (std::uint32_t i = 0; i < count; ++i) layers.emplace_back(c, 100 * i);
  }

  std::vector<float> expected() const {
    Vector x(input.begin(), input.end());
    for (const Layer& layer : layers) x = layer.of(x);
    return {x.begin(), x.end()};
  }

  // All in one dispatch.
  std::vector<float> actual(const LayerStepPlan& plan) const {
    gpu::Device& device = test::device();
    const LayerStepShape& s = plan.shape;
    const std::uint32_t new_key = layers[0].new_key, capacity = layers[0].capacity;
    const auto count = static_cast<std::uint32_t>(layers.size());
    const auto rooms = gpu::tensors_together(device, count, DType::u32, {layers[0].words()}, "weights");
    const auto keys = [&] { return gpu::tensors_together(device, count, DType::f32, {s.key_heads, capacity, s.head_dim}, "keys"); };
    const auto k = keys(), v = keys();
    std::vector<std::array<Nf4, 4>> weights;
    std::vector<LayerStepVectors> vectors{layers.back().vectors()};  // of a layer that is not asked for
    for (std::uint32_t i = 0; i < count; ++i) {
      weights.push_back(layers[i].weights(rooms[i]));
      vectors.push_back(layers[i].vectors());
      device.write(k[i], std::as_bytes(std::span(layers[i].cached_keys)));
      device.write(v[i], std::as_bytes(std::span(layers[i].cached_values)));
    }
    const LayerStepRoom room = make_layer_step_room(device, plan, vectors);
    const test::GuardedTensor output(DType::f32, {1, s.hidden});
    LayerStep step{.plan = plan, .room = room, .layer = 1, .layers = count, .input = test::upload(input, {1, s.hidden}), .output = output.tensor(),
                   .weights = weights[0], .eps = eps, .position = position, .table = test::upload(layers[0].turns, {positions, s.head_dim / 2, 2}), .k = k[0], .v = v[0],
                   .new_key = new_key, .keys = new_key + 1 - keys_before};
    if (count > 1) step.strides = {.weights = rooms[1].offset() - rooms[0].offset(), .keys = k[1].offset() - k[0].offset()};
    gpu::Recorder recorder(device);
    clear(recorder, room);
    record(recorder, step);
    recorder.submit();
    output.expect_guards_intact();
    return test::download(output.tensor());
  }

  std::vector<Layer> layers;
  std::vector<float> input;
};

class LayerStepTest : public testing::TestWithParam<Case> {};

// In f32 rounding alone. In f16 inputs, codes and sums of up to sixteen products are rounded to 2^-12 of themselves at most, which comes to some
// 1.5 times that for a product; four follow one another and gate meets up, so 4 times 2^-12 are to be expected, and twice that is allowed.
// Of two workgroups each waits for the other, where both run at one time; where they do not, generator_test.cpp says what happens.
TEST_P(LayerStepTest, EqualsTheFormula) {
  const Layers layers(GetParam(), 1);
  const auto expected = layers.expected();
  for (const StepLookups lookups : {StepLookups::in_lanes, StepLookups::in_pairs}) {
    for (const std::uint32_t workgroups : {1u, 2u}) {
      const auto plan = layer_step_plan(test::device(), GetParam().shape, lookups, workgroups);
      ASSERT_TRUE(plan);
      EXPECT_EQ(plan->pairs, lookups == StepLookups::in_pairs && test::device().info().f16);
      if (resident_workgroups(test::device(), plan->workgroup, plan->workgroup_bytes()) < workgroups) continue;
      EXPECT_LT(test::relative_error(layers.actual(*plan), expected), plan->pairs ? 2e-3 : 2e-6) << workgroups << " workgroups";
    }
  }
}

// The bars are those of one layer: errors of layers add up in the residual stream as a random walk, and come to 1.4e-7 and 4.7e-4 here.
TEST(LayerStep, LayersThatFollowOneAnotherEqualTheFormula) {
  for (const Case& c : {Case{{192, 320, 8, 2, 24, true, true}}, Case{{64, 64, 4, 1, 32}}}) {
    const Layers layers(c, 3);
    const auto expected = layers.expected();
    for (const StepLookups lookups : {StepLookups::in_lanes, StepLookups::in_pairs}) {
      for (const std::uint32_t workgroups : {1u, 2u}) {
        const auto plan = layer_step_plan(test::device(), c.shape, lookups, workgroups).value();
        if (resident_workgroups(test::device(), plan.workgroup, plan.workgroup_bytes()) < workgroups) continue;
        EXPECT_LT(test::relative_error(layers.actual(plan), expected), plan.pairs ? 2e-3 : 2e-6) << c << ", " << workgroups << " workgroups";
      }
    }
  }
}

// Where the caches have room for many keys both kernels are made with the first token.
TEST(LayerStep, NoLaterTokenWaitsForItsKernel) {
  const LayerStepShape shape{128, 64, 2, 1, 64};
  const auto plan = layer_step_plan(test::device(), shape, StepLookups::in_lanes, 1).value();
  const auto made = [&](const Case& c) {
    const std::uint64_t before = test::device().pipelines_made();
    (void)Layers(c, 1).actual(plan);
    return test::device().pipelines_made() - before;
  };
  EXPECT_GE(made({shape, 1, 1, 8, 600}), 2u);
  EXPECT_EQ(made({shape, 1, 1, 600}), 0u);
}

// Few weights, or adapters, are met faster in lanes.
TEST(LayerStepPlan, LooksUpPairsOfLargeLayersAlone) {
  LayerStepShape shape{.hidden = 2048, .intermediate = 6144, .heads = 16, .key_heads = 8, .head_dim = 128, .head_norm = true};
  const auto pairs = [&] { return layer_step_plan(test::device(), shape, StepLookups::fastest, 64).value().pairs; };
  EXPECT_EQ(pairs(), test::device().info().f16);
  shape.rank = 8;
  EXPECT_FALSE(pairs());
  shape.rank = 0, shape.hidden = 1024, shape.intermediate = 3072;
  EXPECT_FALSE(pairs());
}

INSTANTIATE_TEST_SUITE_P(Cases, LayerStepTest, testing::Values(
    Case{{128, 192, 2, 1, 64, true}},
    // Of two workgroups, one step of four rows of a product, two and three.
    Case{{64, 64, 4, 1, 32}},
    // A part of a slice at the end of each kind of inputs; more slices than subgroups for gated values.
    Case{{192, 1216, 8, 2, 24}}, Case{{320, 448, 4, 4, 48, true, true}},
    // Parts of so many keys that a subgroup has two queries: all of a key head, and half of them.
    Case{{128, 192, 2, 1, 64, true}, 1, 1, 600}, Case{{192, 192, 8, 2, 24}, 1, 1, 1100},
    // Inputs of products beyond the range of f16, and below it.
    Case{{192, 320, 2, 1, 64, true}, 1e5f, 1e5f}, Case{{192, 320, 2, 1, 64, true}, 1e-5f, 1e-9f}));

}  // namespace
}  // namespace nibble::layer_step_test
