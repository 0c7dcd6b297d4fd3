#include "nibble/kernels/adamw_8bit.h"

#include "nibble/base/dynamic_map.h"
#include "nibble/base/error.h"
#include "tests/support/gpu_test.h"

#include <algorithm>
#include <cmath>

namespace nibble::adamw_8bit_test {
namespace {

using Map = std::array<float, 256>;

struct HostMoments {
  std::vector<std::uint8_t> codes;
  std::vector<float> absmax;

  float value(const Map& map, std::size_t i) const { return map[codes[i]] * absmax[i / moment_block]; }
};

HostMoments download_moments(const Tensor& codes, const Tensor& absmax) {
  return {test::device().read<std::uint8_t>(codes), test::device().read<float>(absmax)};
}

// Every entry is tried.
float distance_to_map(const Map& map, double value) {
  double least = INFINITY;
  for (const float entry : map) least = std::min(least, std::fabs(entry - value));
  return static_cast<float>(least);
}

// The moments of one block after an update, by f32 arithmetic in the kernel's order.
struct Block {
  std::vector<float> m, v;
  float absmax_m = 0, absmax_v = 0;
};

// A run of updates on the device, each held against the reference that starts from the device's own state.
class Run8Bit {
 public:
  Run8Bit(std::uint32_t size, AdamWRule rule) : size_(size), rule_(rule) {
    const auto start = test::random_values(size, 1);
    test::device().write(weights_.tensor(), std::as_bytes(std::span(start)));
  }

  void step(const std::vector<float>& gradients) {
    const HostMoments first = first_moments(), second = second_moments();
    const auto before = test::download(weights_.tensor());
    test::run(AdamW8Bit{.weights = weights_.tensor(), .gradients = test::upload(gradients, {size_}), .moments = moments_,
                        .maps = maps_, .norm_and_factor = clip_, .rule = rule_});
    weights_.expect_guards_intact();
    const auto after = test::download(weights_.tensor());
    const HostMoments new_first = first_moments(), new_second = second_moments();
    for (std::size_t begin = 0; begin < size_; begin += moment_block) {
      const std::size_t end = std::min<std::size_t>(size_, begin + moment_block);
      Block block;
      for (std::size_t i = begin; i < end; ++i) {
        const float g = gradients[i] * 0.25f;
        const float m = first.value(dynamic_map(), i), v = second.value(unsigned_dynamic_map(), i);
        block.m.push_back(m + static_cast<float>(1 - rule_.beta1) * (g - m));
        block.v.push_back(static_cast<float>(rule_.beta2) * v + static_cast<float>(1 - rule_.beta2) * g * g);
        block.absmax_m = std::max(block.absmax_m, std::fabs(block.m.back()));
        block.absmax_v = std::max(block.absmax_v, block.v.back());
        expect_weight(before[i], after[i], block.m.back(), block.v.back());
      }
      expect_rounded(block.m, block.absmax_m, dynamic_map(), new_first, begin);
      expect_rounded(block.v, block.absmax_v, unsigned_dynamic_map(), new_second, begin);
    }
    rule_.step += 1;
  }

  HostMoments first_moments() const { return download_moments(moments_.first_codes, moments_.first_absmax); }
  HostMoments second_moments() const { return download_moments(moments_.second_codes, moments_.second_absmax); }

 private:
  void expect_weight(double before, double after, double m, double v) const {
    const double correction1 = 1 - std::pow(rule_.beta1, double(rule_.step)),
                 correction2 = 1 - std::pow(rule_.beta2, double(rule_.step));
    const double step = rule_.learning_rate / correction1 * m / (std::sqrt(v / correction2) + rule_.epsilon);
    // A few roundings of the weight and of the step; the moments themselves may differ by a fused operation.
    EXPECT_NEAR(after, before * (1 - rule_.learning_rate * rule_.weight_decay) - step, 2e-7 + 1e-6 * std::fabs(step));
  }

  // Each code is the nearest, but that a positive second moment is never 0; where two are as near, f32 roundings choose.
  static void expect_rounded(const std::vector<float>& values, float absmax, const Map& map, const HostMoments& found,
                             std::size_t begin) {
    const float found_absmax = found.absmax[begin / moment_block];
    EXPECT_NEAR(found_absmax, absmax, absmax * 3e-7f);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double share = absmax > 0 ? double{values[i]} / absmax : 0.0;
      const float entry = map[found.codes[begin + i]];
      if (map[0] == 0.0f && share > 0 && share < map[1]) {
        EXPECT_EQ(found.codes[begin + i], 1);
        continue;
      }
      EXPECT_LE(std::fabs(entry - share), distance_to_map(map, share) + 3e-7 * std::fabs(share)) << begin + i << ": " << share;
    }
  }

  std::uint32_t size_;
  AdamWRule rule_;
  test::GuardedTensor weights_{DType::f32, {size_}};
  Moments8Bit moments_ = make_moments_8bit(test::device(), size_);
  Tensor maps_ = moment_maps(test::device());
  Tensor clip_ = test::upload(std::vector<float>{2.0f, 0.25f}, {2});
};

// Gradients over six decades, some of them 0.
std::vector<float> gradients_of(std::uint32_t size, std::uint64_t seed) {
  auto values = test::random_values(size, seed);
  for (std::uint32_t i = 0; i < size; ++i) values[i] *= std::pow(10.0f, -static_cast<float>((i + seed) % 7));
  for (std::uint32_t i = 0; i < size; i += 5) values[i] = 0;
  return values;
}

TEST(AdamW8Bit, EachStepFollowsTheReference) {
  for (const std::uint32_t size : {1u, 255u, 256u, 257u, 2047u, 5001u}) {
    Run8Bit run(size, {.learning_rate = 1e-2, .weight_decay = 0.1});
    for (std::uint64_t seed = 1; seed <= 4; ++seed) run.step(gradients_of(size, seed));
  }
}

// A part that begins at any block takes its own scales and leaves those before it alone.
TEST(AdamW8Bit, ScalesMayStandBehindOthers) {
  constexpr std::uint32_t size = 1000, blocks = 4;
  for (const std::uint32_t skipped : {1u, 37u, 63u}) {
    const auto gradients = test::upload(gradients_of(size, 1), {size});
    const Tensor clip = test::upload(std::vector<float>{1, 1}, {2}), maps = moment_maps(test::device());
    Moments8Bit plain = make_moments_8bit(test::device(), size), behind = plain;
    std::vector<float> before(skipped + blocks, 7.0f);
    std::fill(before.begin() + skipped, before.end(), 0.0f);
    behind.first_codes = test::device().tensor(DType::u32, {blocks, 64}, "codes");
    behind.second_codes = test::device().tensor(DType::u32, {blocks, 64}, "codes");
    behind.first_absmax = test::upload(before, {skipped + blocks});
    behind.second_absmax = test::upload(before, {skipped + blocks});
    behind.skipped = skipped;
    std::vector<std::vector<float>> weights;
    for (const Moments8Bit& moments : {plain, behind}) {
      const Tensor w = test::upload(test::random_values(size, 2), {size});
      test::run(AdamW8Bit{.weights = w, .gradients = gradients, .moments = moments, .maps = maps, .norm_and_factor = clip,
                          .rule = {.learning_rate = 1e-2}});
      weights.push_back(test::download(w));
    }
    EXPECT_EQ(weights[0], weights[1]);
    EXPECT_EQ(test::device().read<std::uint8_t>(plain.first_codes), test::device().read<std::uint8_t>(behind.first_codes));
    for (const auto& [own, shifted] : {std::pair{plain.first_absmax, behind.first_absmax}, {plain.second_absmax, behind.second_absmax}}) {
      EXPECT_EQ(test::download(shifted.rows(skipped, skipped + blocks)), test::download(own));
      EXPECT_EQ(test::download(shifted.rows(0, skipped)), std::vector<float>(skipped, 7.0f));
    }
  }
  Moments8Bit beyond = make_moments_8bit(test::device(), size);
  beyond.skipped = 64;
  gpu::Recorder recorder(test::device());
  const Tensor a = test::upload(std::vector<float>(size), {size});
  EXPECT_THROW(record(recorder, AdamW8Bit{.weights = a, .gradients = a, .moments = beyond, .maps = moment_maps(test::device()),
                                          .norm_and_factor = test::upload(std::vector<float>(2), {2})}),
               Error);
}

TEST(AdamW8Bit, ABlockWithoutGradientsStaysZero) {
  Run8Bit run(300, {.learning_rate = 1e-2});
  std::vector<float> gradients(300);
  gradients[299] = 1;
  run.step(gradients);
  EXPECT_EQ(run.first_moments().absmax[0], 0.0f);
  EXPECT_EQ(run.second_moments().absmax[0], 0.0f);
  EXPECT_GT(run.second_moments().absmax[1], 0.0f);
}

// Moments that stay (beta 1) come back as the same codes, as their block's largest is in the map.
TEST(AdamW8Bit, TheRoundTripIsExact) {
  constexpr std::uint32_t size = 1000;
  Moments8Bit moments = make_moments_8bit(test::device(), size);
  std::vector<std::uint8_t> first(4 * moment_block), second(4 * moment_block);
  Rng rng(1);
  for (std::uint32_t i = 0; i < size; ++i) {
    // Each block has the code of 1, and -0 and 0 have one code.
    first[i] = i % moment_block == 0 ? 255 : static_cast<std::uint8_t>(rng.next_u32());
    second[i] = i % moment_block == 7 ? 255 : static_cast<std::uint8_t>(rng.next_u32());
  }
  std::fill(first.begin() + size, first.end(), std::uint8_t{127});  // the code of 0, which rest of a block gets
  const std::vector<float> absmax = {1e-3f, 7.0f, 1e-12f, 0.3f};
  auto& device = test::device();
  device.write(moments.first_codes, std::as_bytes(std::span(first)));
  device.write(moments.second_codes, std::as_bytes(std::span(second)));
  device.write(moments.first_absmax, std::as_bytes(std::span(absmax)));
  device.write(moments.second_absmax, std::as_bytes(std::span(absmax)));
  test::run(AdamW8Bit{.weights = test::upload(std::vector<float>(size), {size}),
                      .gradients = test::upload(test::random_values(size, 3), {size}), .moments = moments,
                      .maps = moment_maps(device), .norm_and_factor = test::upload(std::vector<float>{1, 1}, {2}),
                      .rule = {.learning_rate = 0, .beta1 = 1, .beta2 = 1}});
  EXPECT_EQ(device.read<std::uint8_t>(moments.first_codes), first);
  EXPECT_EQ(device.read<std::uint8_t>(moments.second_codes), second);
  EXPECT_EQ(device.read<float>(moments.first_absmax), absmax);
  EXPECT_EQ(device.read<float>(moments.second_absmax), absmax);
}

TEST(AdamW8Bit, ANormThatIsNotFiniteChangesNothing) {
  const auto values = test::random_values(100, 1);
  const Tensor weights = test::upload(values, {100});
  const Moments8Bit moments = make_moments_8bit(test::device(), 100);
  test::run(AdamW8Bit{.weights = weights, .gradients = test::upload(values, {100}), .moments = moments,
                      .maps = moment_maps(test::device()),
                      .norm_and_factor = test::upload(std::vector<float>{INFINITY, 0.0f}, {2}), .rule = {.learning_rate = 1}});
  EXPECT_EQ(test::download(weights), values);
  EXPECT_EQ(test::download(moments.first_absmax)[0], 0.0f);
}

TEST(AdamW8Bit, MoreThanOneBinding) {
  constexpr std::uint32_t size = 34'000'001;
  const auto make = [&] { return test::device().tensor(DType::f32, {size}, "adamw_8bit"); };
  const Tensor weights = make(), gradients = make();
  const std::vector<float> one = {1.0f};
  test::device().write(gradients.rows(size - 1, size), std::as_bytes(std::span(one)));
  const Moments8Bit moments = make_moments_8bit(test::device(), size);
  test::run(AdamW8Bit{.weights = weights, .gradients = gradients, .moments = moments, .maps = moment_maps(test::device()),
                      .norm_and_factor = test::upload(std::vector<float>{1, 1}, {2}), .rule = {.learning_rate = 0.5}});
  EXPECT_NEAR(test::download(weights.rows(size - 1, size))[0], -0.5f, 1e-6f);
  EXPECT_EQ(test::download(weights.rows(33'554'368, 33'554'500)), std::vector<float>(132));
  const std::uint32_t blocks = moments.first_absmax.dim(0);
  EXPECT_NEAR(test::download(moments.first_absmax.rows(blocks - 1, blocks))[0], 0.1f, 1e-7f);
}

TEST(AdamW8Bit, SizesMustAgree) {
  gpu::Recorder recorder(test::device());
  const Tensor a = test::upload(std::vector<float>(300), {300});
  EXPECT_THROW(record(recorder, AdamW8Bit{.weights = a, .gradients = a, .moments = make_moments_8bit(test::device(), 200),
                                          .maps = moment_maps(test::device()),
                                          .norm_and_factor = test::upload(std::vector<float>(2), {2})}),
               Error);
}

}  // namespace
}  // namespace nibble::adamw_8bit_test
