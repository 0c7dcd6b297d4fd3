#include "nibble/model/golden.h"
#include "nibble/train/trainer.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

#include <cmath>

namespace nibble::tokens_test {
namespace {

struct Case {
  std::string kind;

  std::filesystem::path folder() const { return test::source_path("tests/golden/tokens/" + kind); }
  std::filesystem::path model() const { return test::source_path(kind == "tied" ? "models/tiny-qwen3" : "tests/golden/llama/model"); }
};

TrainerOptions options_for(const SafetensorsFile& golden) {
  const std::uint32_t tokens = golden_tokens(golden);
  return {.model = {.max_tokens = tokens, .max_labels = tokens}, .adamw = {.weight_decay = 0.1, .max_grad_norm = 1}, .loss = {}};
}

// How far rows have moved from `start`, against how far PyTorch's have.
double movement_error(std::vector<float> rows, const std::vector<float>& start, std::vector<float> wanted) {
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] -= start[i], wanted[i] -= start[i];
  return test::relative_error(rows, wanted);
}

// Three updates with AdamW, clipped by the norm of all gradients together, as torch.optim does them.
TEST(TrainTokens, RowsMoveAsInPyTorch) {
  for (const Case& test_case : {Case{"tied"}, Case{"untied"}}) {
    const SafetensorsFile golden(test_case.folder() / "golden.safetensors");
    const GoldenRows rows = read_golden_rows(golden);
    for (const ProductPath path : test::product_paths()) {
      SCOPED_TRACE(test_case.kind + " " + test::name_of(path));
      ModelState state = ModelState::load(test::device(), test_case.model(), {.path = path, .adapter = test_case.folder() / "adapter_nonzero"});
      const LoraAdapter first = state.lora_adapter();
      Trainer trainer(state, options_for(golden));
      const std::vector<TokenStream> batch{rows.stream()};
      const auto losses = golden.read_as_f32("losses");
      const bool exact = path == ProductPath::f32;
      for (int step = 1; step <= 3; ++step) {
        const StepResult result = trainer.full_train_step(batch, 0.01);
        EXPECT_NEAR(result.loss, losses[static_cast<std::size_t>(step - 1)], (exact ? 1e-5 : 5e-3) * result.loss) << step;
        const LoraAdapter now = state.lora_adapter();
        const auto expect_rows = [&](std::string_view name, const std::vector<float>& found, const std::vector<float>& start) {
          if (found.empty()) return;
          const auto wanted = golden.read_as_f32(fmt::format("step{}.{}", step, name));
          // The first update is each gradient's sign, and f16 may have the other one of the few that are next to zero: of 1.5% of
          // them this comes to 2 sqrt(0.015).
          EXPECT_LE(movement_error(found, start, wanted), exact ? 1e-3 : 0.25) << step << " " << name;
        };
        expect_rows(peft_token_rows_name, now.token_rows, first.token_rows);
        expect_rows(peft_head_rows_name, now.head_rows, first.head_rows);
        EXPECT_EQ(now.head_rows.empty(), test_case.kind == "tied");
      }
    }
  }
}

// Rows learn at their own rate, and so do updates that overlap: 0 leaves them.
TEST(TrainTokens, TheirRateIsTheirOwn) {
  const Case tied{"tied"};
  const SafetensorsFile golden(tied.folder() / "golden.safetensors");
  const GoldenRows rows = read_golden_rows(golden);
  ModelState state = ModelState::load(test::device(), tied.model(), {.path = ProductPath::f32, .adapter = tied.folder() / "adapter_nonzero"});
  const LoraAdapter first = state.lora_adapter();
  TrainerOptions options = options_for(golden);
  options.adamw.tokens_ratio = 0;
  Trainer trainer(state, options);
  const std::vector<TokenStream> batch{rows.stream()};
  trainer.begin_step(batch, 0.01);
  trainer.begin_step(batch, 0.01);
  trainer.end_step();
  trainer.end_step();
  const LoraAdapter now = state.lora_adapter();
  EXPECT_EQ(now.token_rows, first.token_rows);
  EXPECT_NE(now.at(1, Projection::q).b, first.at(1, Projection::q).b);
}

// A gradient that is not finite changes no row.
TEST(TrainTokens, NothingIsLearntFromWhatIsNotFinite) {
  const Case tied{"tied"};
  const SafetensorsFile golden(tied.folder() / "golden.safetensors");
  const GoldenRows rows = read_golden_rows(golden);
  ModelState state = ModelState::load(test::device(), tied.model(), {.path = ProductPath::f32, .adapter = tied.folder() / "adapter_nonzero"});
  LoraAdapter spoiled = state.lora_adapter();
  spoiled.token_rows[0] = std::numeric_limits<float>::infinity();  // of token 3020, which the row has
  state.set_lora(spoiled, true);
  Trainer trainer(state, options_for(golden));
  const std::vector<TokenStream> batch{rows.stream()};
  trainer.begin_step(batch, 0.01);
  EXPECT_FALSE(std::isfinite(trainer.end_step().grad_norm));
  EXPECT_EQ(state.lora_adapter().token_rows, spoiled.token_rows);
}

// Two batches of one update add up to the gradient of both.
TEST(TrainTokens, GradientsAddUpOverBatches) {
  for (const Case& test_case : {Case{"tied"}, Case{"untied"}}) {
    const SafetensorsFile golden(test_case.folder() / "golden.safetensors");
    const GoldenRows rows = read_golden_rows(golden);
    ModelState state = ModelState::load(test::device(), test_case.model(), {.path = ProductPath::f32, .adapter = test_case.folder() / "adapter_nonzero"});
    Trainer trainer(state, options_for(golden));
    const std::vector<TokenStream> once{rows.stream()}, twice{rows.stream(), rows.stream()};
    const auto gradients = [&](std::span<const TokenStream> batches) {
      trainer.find_gradients(batches);
      std::vector<float> all;
      for (const Tensor& tensor : state.trained_tokens()->gradients()) {
        const auto values = test::device().read<float>(tensor);
        all.insert(all.end(), values.begin(), values.end());
      }
      return all;
    };
    const auto one = gradients(once), two = gradients(twice);
    EXPECT_GT(std::fabs(*std::max_element(one.begin(), one.end())), 0);
    EXPECT_LE(test::relative_error(two, one), 1e-6);  // both are means over their labels
  }
}

}  // namespace
}  // namespace nibble::tokens_test
