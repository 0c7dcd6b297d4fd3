#include "nibble/model/trained_tokens.h"

#include <cmath>

#include "nibble/base/error.h"
#include "nibble/model/generator.h"
#include "nibble/model/golden.h"
#include "nibble/model/parity.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

namespace nibble::trained_tokens_test {
namespace {

// An adapter of ../golden/tokens with its model.
struct Golden {
  std::string kind;

  std::filesystem::path folder() const { return test::source_path("tests/golden/tokens/" + kind); }
  std::filesystem::path model() const { return test::source_path(kind == "tied" ? "models/tiny-qwen3" : "tests/golden/llama/model"); }
  std::filesystem::path adapter() const { return folder() / "adapter_nonzero"; }
  SafetensorsFile file() const { return SafetensorsFile(folder() / "golden.safetensors"); }
};
const std::vector<Golden> both{{"tied"}, {"untied"}};

// Of all layers.
std::vector<Residency> residencies(Residency residency) { return residency == Residency::resident ? std::vector<Residency>() : std::vector(4, residency); }

ModelOptions options_for(const SafetensorsFile& golden, ActivationChoices activations = {}, Residency residency = Residency::resident) {
  return {.residency = residencies(residency), .activations = std::move(activations), .max_tokens = golden_tokens(golden), .max_labels = golden_tokens(golden)};
}

void expect_parity(const Golden& golden, const ActivationChoices& activations, Residency residency) {
  const SafetensorsFile file = golden.file();
  for (const ProductPath path : test::product_paths()) {
    SCOPED_TRACE(golden.kind + " " + test::name_of(path));
    ModelState state = ModelState::load(test::device(), golden.model(),
                                        {.path = path, .adapter = golden.adapter(), .residency = residencies(residency)});
    Model model(state, options_for(file, activations, residency));
    const ParityReport report = compare_with_golden(model, state, file);
    const ParityBars bars = parity_bars(path);
    EXPECT_TRUE(report.passes(bars)) << report.loss_error << " " << report.worst_gradient().error << " " << report.worst_gradient().name;
    // Two matrices of two projections, and the rows of one table or of both.
    EXPECT_EQ(report.gradients.size(), golden.kind == "tied" ? 5u : 6u);
    EXPECT_EQ(report.gradients.front().name, golden.kind == "tied" ? peft_token_rows_name : peft_head_rows_name);
  }
}

TEST(TrainedTokens, LossLogitsAndGradientsArePeftsOnEveryPath) {
  for (const Golden& golden : both) expect_parity(golden, {}, Residency::resident);
}
TEST(TrainedTokens, WithGradientCheckpointing) {
  for (const Golden& golden : both) expect_parity(golden, {Activations::recompute}, Residency::resident);
}
TEST(TrainedTokens, WithStreamedLayers) {
  for (const Golden& golden : both) expect_parity(golden, {}, Residency::streamed);
}

std::vector<float> losses(Model& model, const GoldenRows& rows, bool of_base) {
  gpu::Recorder recorder(model.device());
  const DeviceStream stream = model.upload(recorder, rows.stream());
  const Head::Loss loss = of_base ? model.base_loss(recorder, stream) : model.loss(recorder, stream);
  recorder.submit();
  return model.device().read<float>(loss.loss);
}

// Bit for bit, whatever was computed before.
TEST(TrainedTokens, WithoutTheAdapterTheBasesOwnRowsAreBack) {
  for (const Golden& golden : both) {
    const SafetensorsFile file = golden.file();
    const GoldenRows rows = read_golden_rows(file);
    for (const ProductPath path : test::product_paths()) {
      SCOPED_TRACE(golden.kind + " " + test::name_of(path));
      const ModelState base = ModelState::load(test::device(), golden.model(), {.path = path, .rows_change = true});
      Model alone(base, options_for(file));
      const auto expected = losses(alone, rows, false);
      ModelState state = ModelState::load(test::device(), golden.model(), {.path = path, .adapter = golden.adapter()});
      Model model(state, options_for(file));
      EXPECT_EQ(losses(model, rows, true), expected);
      const auto adapted = losses(model, rows, false);
      EXPECT_NE(adapted, expected);
      EXPECT_EQ(losses(model, rows, true), expected);
      EXPECT_EQ(losses(model, rows, false), adapted);
      EXPECT_EQ(test::device().read<std::uint8_t>(state.weights().embedding.data) == test::device().read<std::uint8_t>(base.weights().embedding.data), false);
      // An adapter without such rows leaves the tables as the base has them.
      LoraAdapter plain = state.lora_adapter();
      plain.config.trained_tokens.clear(), plain.config.trained_head_tokens.clear();
      plain.token_rows.clear(), plain.head_rows.clear();
      state.set_lora(plain, false);
      EXPECT_EQ(state.trained_tokens(), nullptr);
      EXPECT_TRUE(test::device().read<std::uint8_t>(state.weights().embedding.data) == test::device().read<std::uint8_t>(base.weights().embedding.data));
      EXPECT_TRUE(test::device().read<std::uint8_t>(state.weights().head.data) == test::device().read<std::uint8_t>(base.weights().head.data));
    }
  }
}

// The same where texts are continued, one token after the other.
TEST(TrainedTokens, AGeneratorTurnsTheAdapterOffAndOn) {
  for (const Golden& golden : both) {
    for (const ProductPath path : test::product_paths()) {
      SCOPED_TRACE(golden.kind + " " + test::name_of(path));
      const ModelState base = ModelState::load(test::device(), golden.model(), {.path = path, .rows_change = true});
      const ModelState state = ModelState::load(test::device(), golden.model(), {.path = path, .adapter = golden.adapter(), .trainable = false});
      const std::vector<std::uint32_t> text{17, 302, 3020, 7, 91, 901};
      const auto logits = [&](Generator& generator) {
        std::vector<float> all;
        for (std::size_t length = 3; length <= text.size(); ++length) {
          const auto next = generator.logits(std::span(text).first(length));
          all.insert(all.end(), next.begin(), next.end());
        }
        return all;
      };
      Generator alone(base, {.capacity = 16}), generator(state, {.capacity = 16});
      const auto expected = logits(alone), adapted = logits(generator);
      EXPECT_FALSE(adapted == expected);
      generator.use_adapter(false);
      EXPECT_TRUE(logits(generator) == expected);
      generator.use_adapter(true);
      EXPECT_TRUE(logits(generator) == adapted);
    }
  }
}

// What an adapter gives back is what it came with, and rows far above the table's largest value are not lost in f16.
TEST(TrainedTokens, RowsMayBeLargerThanTheTables) {
  const Golden golden{"tied"};
  for (const ProductPath path : test::product_paths()) {
    ModelState state = ModelState::load(test::device(), golden.model(), {.path = path, .rows_change = true});
    LoraAdapter adapter = load_lora_adapter(golden.adapter(), state.config());
    for (float& value : adapter.token_rows) value *= 100;
    state.set_lora(adapter, true);
    EXPECT_EQ(state.lora_adapter().token_rows, adapter.token_rows);
    gpu::Recorder recorder(test::device());
    state.trained_tokens()->show(recorder, true);
    recorder.submit();
    const DenseMatrix& table = state.weights().embedding;
    for (std::size_t i = 0; i < adapter.config.trained_tokens.size(); ++i) {
      const std::uint32_t id = adapter.config.trained_tokens[i];
      auto row = test::download(table.data.rows(id, id + 1));
      for (float& value : row) value *= table.scale;
      const std::vector<float> wanted(adapter.token_rows.begin() + static_cast<std::ptrdiff_t>(256 * i), adapter.token_rows.begin() + static_cast<std::ptrdiff_t>(256 * (i + 1)));
      EXPECT_LE(test::relative_error(row, wanted), path == ProductPath::f32 ? 0 : 1e-3) << test::name_of(path);
    }
  }
}

TEST(TrainedTokens, WhatDoesNotGoTogetherIsRefused) {
  const Golden golden{"tied"};
  ModelState state = ModelState::load(test::device(), golden.model(), {.path = ProductPath::f32, .adapter = golden.adapter()});
  test::expect_error<UsageError>([&] { state.train_head({}); }, "whole head", "rows of tokens");
  LoraAdapter without = state.lora_adapter();
  without.token_rows.clear();
  test::expect_error<UsageError>([&] { state.set_lora(without, true); }, "3 tokens", "0 values");
  state.set_lora(load_lora_adapter(golden.adapter(), state.config()), true);
  const test::TemporaryFolder folder;
  test::expect_error<UsageError>([&] { state.save_checkpoint(folder.path(), 1, 0); }, "rows of tokens");
  if (!test::device().info().f16) return;
  ModelState tight = ModelState::load(test::device(), golden.model(), {.path = ProductPath::f16});
  const LoraAdapter adapter = load_lora_adapter(golden.adapter(), tight.config());
  test::expect_error<UsageError>([&] { tight.set_lora(adapter, true); }, "rows_change");
}

}  // namespace
}  // namespace nibble::trained_tokens_test
