#include "nibble/model/parity.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

namespace nibble {
namespace {

struct Variant {
  std::string family = "tiny";
  bool gradient_checkpointing = false;
  std::uint32_t head_chunk = 0;
  Residency residency = Residency::resident;
  bool train_head = false;
};

ParityReport parity(ProductPath path, const Variant& variant) {
  auto& device = test::device();
  const std::string folder = test::source_path("tests/golden/" + variant.family);
  const SafetensorsFile golden(folder + "/golden.safetensors");
  const std::string model_folder = variant.family == "tiny" ? std::string(test::source_path("models/tiny-qwen3")) : folder + "/model";
  ModelState state = ModelState::load(device, model_folder, {.path = path, .adapter = folder + "/adapter_nonzero"});
  if (variant.train_head) state.train_head({});
  const std::uint32_t tokens = golden_tokens(golden);
  Model model(state, {.residency = variant.residency, .gradient_checkpointing = variant.gradient_checkpointing,
                      .max_tokens = tokens, .max_labels = tokens, .head_chunk = variant.head_chunk});
  return compare_with_golden(model, state, golden);
}

void expect_parity(const Variant& variant) {
  for (const ProductPath path : test::product_paths()) {
    const ParityReport report = parity(path, variant);
    const ParityBars bars = parity_bars(path);
    SCOPED_TRACE(test::name_of(path));
    EXPECT_LE(report.loss_error, bars.loss_error);
    EXPECT_GE(report.logits_cosine, bars.logits_cosine);
    EXPECT_LE(report.worst_gradient().error, bars.gradient_error) << report.worst_gradient().name;
    EXPECT_GE(report.worst_direction().cosine, bars.gradient_cosine) << report.worst_direction().name;
    // Layers of 7 projections, two matrices each; the tiny model's also of the head.
    const bool tiny = variant.family == "tiny", four_layers = tiny || variant.family == "bnb";
    EXPECT_EQ(report.nf4_codes, tiny ? 128u * 256u : 0u);
    EXPECT_EQ(report.nf4_differences, 0u);
    EXPECT_EQ(report.gradients.size(), (four_layers ? 56u : 42u) + (tiny ? 1u : 0u));
    EXPECT_TRUE(report.passes(bars));
  }
}

TEST(Parity, EveryPathIsWithinTheBars) { expect_parity({}); }
TEST(Parity, WithGradientCheckpointing) { expect_parity({.gradient_checkpointing = true}); }
TEST(Parity, WithSmallHeadChunks) { expect_parity({.head_chunk = 64}); }
TEST(Parity, WithAHeadThatIsTrained) { expect_parity({.head_chunk = 64, .train_head = true}); }
TEST(Parity, OfOtherFamilies) {
  for (const char* family : {"llama", "mistral", "qwen2"}) {
    SCOPED_TRACE(family);
    expect_parity({.family = family});
    expect_parity({.family = family, .gradient_checkpointing = true});
  }
}
TEST(Parity, OfWeightsThatBitsandbytesHasQuantised) { expect_parity({.family = "bnb"}); }
TEST(Parity, WithCachedWeights) { expect_parity({.residency = Residency::cached}); }

}  // namespace
}  // namespace nibble
