#include "nibble/weights/lora_start.h"

#include <cmath>

#include "nibble/base/error.h"
#include "nibble/quant/nf4.h"
#include "nibble/weights/bnb.h"
#include "nibble/weights/lora_weights.h"
#include "nibble/weights/merge.h"
#include "nibble/weights/quantize.h"
#include "tests/support/files.h"

namespace nibble::lora_start_test {
namespace {

using test::expect_error;

const fs::path tiny = test::source_path("models/tiny-qwen3");

// What the base in NF4 and scaling * B A come to together.
std::vector<float> together(std::span<const std::uint8_t> packed, std::span<const float> absmax, const LoraMatrices& lora, ProjectionDims dims,
                            const LoraModule& module) {
  std::vector<float> w(std::size_t{dims.out} * dims.in);
  nf4_dequantize(packed, absmax, w);
  for (std::size_t i = 0; i < w.size(); ++i) {
    for (std::size_t k = 0; k < module.rank; ++k) {
      w[i] += static_cast<float>(module.scaling) * lora.b[i / dims.in * module.rank + k] * lora.a[k * dims.in + i % dims.in];
    }
  }
  return w;
}

double distance(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(double{a[i]} - b[i], 2);
  return std::sqrt(sum);
}

class Start : public testing::Test {
 protected:
  double error_of(const LoraStart& start, const LoraModule& module) const {
    const StartedMatrix made = start_matrix(w_, dims_, module, start, "w");
    return distance(w_, together(made.packed, made.absmax, made.lora, dims_, module));
  }
  double nf4_error() const {
    std::vector<std::uint8_t> packed(nf4_packed_bytes(w_.size()));
    std::vector<float> absmax(nf4_blocks(w_.size())), values(w_.size());
    nf4_quantize(DType::f32, std::as_bytes(std::span(w_)), packed, absmax);
    nf4_dequantize(packed, absmax, values);
    return distance(w_, values);
  }

  ModelConfig config_ = read_model_config(tiny);
  Checkpoint base_{tiny};
  std::vector<float> w_ = base_.read_as_f32(projection_tensor_name(1, Projection::up));
  ProjectionDims dims_ = projection_dims(config_, Projection::up);
};

// The point of both: with the adapter the model in 4 bits is nearer to the original than without.
TEST_F(Start, BringsTheModelNearerToTheOriginal) {
  const double plain = nf4_error();
  for (const double scaling : {1.0, 0.5, 3.0}) {
    const LoraModule module{.rank = 32, .scaling = scaling};
    const double pissa = error_of({}, module), loftq = error_of({.kind = LoraStartKind::loftq}, module),
                 more = error_of({.kind = LoraStartKind::loftq, .loftq_rounds = 5}, module);
    EXPECT_LT(pissa, 0.97 * plain);
    EXPECT_LT(loftq, 0.97 * plain);
    EXPECT_LT(more, loftq);
  }
}

// What the usual number of iterations leaves is within a thousandth of what many do, though singular values fall slowly here.
TEST_F(Start, PissaTakesThePrincipalPart) {
  const LoraModule module{.rank = 16, .scaling = 2};
  const StartedMatrix exact = start_matrix(w_, dims_, module, {.svd_iterations = 30}, "w");
  const std::vector<float> zeros(w_.size());
  std::vector<std::uint8_t> codes(nf4_packed_bytes(w_.size()), 0x77);  // of zeros
  const auto part = together(codes, std::vector<float>(nf4_blocks(w_.size())), exact.lora, dims_, module);
  const double left_exact = distance(w_, part);
  const StartedMatrix usual = start_matrix(w_, dims_, module, {}, "w");
  const double left = distance(w_, together(codes, std::vector<float>(nf4_blocks(w_.size())), usual.lora, dims_, module));
  EXPECT_NEAR(left, left_exact, 1e-3 * left_exact);
  EXPECT_LT(left, 0.95 * distance(w_, zeros));
}

TEST_F(Start, IsWrittenWithItsBase) {
  const test::TemporaryFolder folder;
  const fs::path output = folder / "base";
  LoraStart start = lora_start_of("pissa_niter_4");
  start.lora = {.rank = 4, .lora_alpha = 6, .target_modules = {Projection::q, Projection::down}};
  quantize_model({.model = tiny, .output = output, .start = start});
  const LoraAdapter adapter = load_lora_adapter(output / "pissa_init", read_model_config(output));
  EXPECT_EQ(adapter.config.base_model_name_or_path, output.string());
  const Checkpoint written(output);
  for (const Projection p : {Projection::q, Projection::down, Projection::v}) {
    const auto dims = projection_dims(config_, p);
    const std::string name = projection_tensor_name(3, p);
    const auto matrix = bnb_matrix(written, name, dims.out, dims.in);
    ASSERT_TRUE(matrix.has_value());
    const std::size_t count = std::size_t{dims.out} * dims.in;
    std::vector<std::uint8_t> packed(nf4_packed_bytes(count));
    std::vector<float> absmax(nf4_blocks(count));
    read_bnb(*matrix, 0, packed, absmax);
    const LoraModule module = adapter.modules()[3][static_cast<std::size_t>(p)];
    const auto values = base_.read_as_f32(name);
    EXPECT_EQ(module.used(), p != Projection::v);
    const double error = distance(values, together(packed, absmax, adapter.at(3, p), dims, module));
    EXPECT_LT(error, 0.12 * distance(values, std::vector<float>(count)));  // NF4 leaves about a tenth
    EXPECT_GT(error, 0);
  }
  expect_error<UsageError>([&] { quantize_model({.model = tiny, .output = folder / "other", .double_quant = true, .start = start}); }, "--double-quant");
}

// original + without_start(trained) = original - scaling * B0 A0 + scaling * B A
TEST_F(Start, IsTakenOutAgain) {
  for (const bool rslora : {false, true}) {
    const LoraConfig config{.rank = 3, .lora_alpha = 5, .use_rslora = rslora, .rank_pattern = {{"up_proj", 2}}, .alpha_pattern = {{"q_proj", 7.0}}};
    LoraAdapter trained = make_lora_adapter(config_, config), first = trained;
    float value = 0;
    for (LoraAdapter* adapter : {&trained, &first}) {
      for (auto& layer : adapter->layers) {
        for (LoraMatrices& matrices : layer) {
          for (auto* numbers : {&matrices.a, &matrices.b}) {
            for (float& number : *numbers) number = value = value > 1 ? value - 1.993f : value + 0.0173f;
          }
        }
      }
    }
    const LoraAdapter plain = without_start(trained, first);
    const LoraModules before = trained.modules(), after = plain.modules();
    for (const Projection p : {Projection::q, Projection::up}) {
      const auto dims = projection_dims(config_, p);
      const std::vector<std::uint8_t> none(nf4_packed_bytes(std::size_t{dims.out} * dims.in), 0x77);
      const std::vector<float> zeros(none.size() * 2 / nf4_block);
      const LoraModule was = before[2][static_cast<std::size_t>(p)], is = after[2][static_cast<std::size_t>(p)];
      EXPECT_EQ(is.rank, 2 * was.rank);
      EXPECT_NEAR(is.scaling, was.scaling, 1e-12);
      const auto all = together(none, zeros, plain.at(2, p), dims, is), now = together(none, zeros, trained.at(2, p), dims, was),
                 then = together(none, zeros, first.at(2, p), dims, was);
      for (std::size_t i = 0; i < all.size(); i += 97) ASSERT_NEAR(all[i], now[i] - then[i], 1e-4) << i;
    }
  }
  const LoraAdapter other = make_lora_adapter(config_, {.rank = 3}), fits = make_lora_adapter(config_, {.rank = 4}),
                    dora = make_lora_adapter(config_, {.rank = 4, .use_dora = true});
  expect_error<DataError>([&] { without_start(fits, other); }, "model.layers.0.self_attn.q_proj", "rank 4");
  expect_error<DataError>([&] { without_start(dora, fits); }, "DoRA");
}

// PEFT's "gaussian": a deviation of 1 / rank, of each module's own.
TEST(GaussianStart, HasADeviationOfOneOverTheRank) {
  LoraAdapter adapter = make_lora_adapter(read_model_config(tiny), {.rank = 8, .rank_pattern = {{"down_proj", 2}}});
  initialise_lora(adapter, 7, true);
  for (const Projection p : {Projection::up, Projection::down}) {
    const auto& a = adapter.at(2, p).a;
    double sum = 0, squares = 0;
    for (const float value : a) sum += value, squares += double{value} * value;
    const double count = static_cast<double>(a.size()), deviation = p == Projection::up ? 1.0 / 8 : 1.0 / 2;
    EXPECT_NEAR(std::sqrt(squares / count), deviation, 4 * deviation / std::sqrt(2 * count));  // four standard errors
    EXPECT_NEAR(sum / count, 0, 4 * deviation / std::sqrt(count));
    EXPECT_EQ(adapter.at(2, p).b, std::vector<float>(adapter.at(2, p).b.size()));
  }
}

TEST(StartNames, AreThoseOfPeft) {
  EXPECT_EQ(lora_start_of("pissa").kind, LoraStartKind::pissa);
  EXPECT_EQ(lora_start_of("pissa_niter_16").svd_iterations, 16u);
  EXPECT_EQ(lora_start_of("loftq").kind, LoraStartKind::loftq);
  for (const char* wrong : {"", "pissa_niter_", "pissa_niter_x", "pissa_niter_1e9", "pissa_niter_101", "olora"}) {
    expect_error<UsageError>([&] { lora_start_of(wrong); }, "--init-lora-weights", "pissa_niter_N");
  }
}

}  // namespace
}  // namespace nibble::lora_start_test
