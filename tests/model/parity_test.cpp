#include "nibble/model/parity.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

namespace nibble::parity_test {
namespace {

struct Variant {
  std::string family = "tiny";
  ActivationChoices activations = {};
  std::uint32_t mlp_chunk = 0, head_chunk = 0;
  Residency residency = Residency::resident;
  bool train_head = false;
  bool double_quant = false;
  std::string stored = {};  // the folder beside the family's model that has it in another form, and a golden file of layer 0

  std::string folder() const { return test::source_path("tests/golden/" + family); }
  std::string golden() const { return (stored.empty() ? folder() : model()) + "/golden.safetensors"; }
  std::string model() const {
    if (!stored.empty()) return folder() + "/" + stored;
    return family == "tiny" || family == "patterns" || family == "dora" ? std::string(test::source_path("models/tiny-qwen3")) : folder() + "/model";
  }
};

ParityReport parity(ProductPath path, const Variant& variant) {
  auto& device = test::device();
  const SafetensorsFile golden(variant.golden());
  ModelState state = ModelState::load(device, variant.model(), {.path = path, .adapter = variant.folder() + "/adapter_nonzero",
                                       .stream = {.double_quant = variant.double_quant}});
  if (variant.train_head) state.train_head({});
  const std::uint32_t tokens = golden_tokens(golden);
  Model model(state, {.residency = choose_residency(state.num_layers(), variant.residency, {}), .activations = variant.activations,
                      .mlp_chunk = variant.mlp_chunk, .max_tokens = tokens, .max_labels = tokens, .head_chunk = variant.head_chunk});
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
    const bool tiny = variant.family == "tiny";  // its file alone has the head's gradient and a sample of NF4
    EXPECT_EQ(report.nf4_codes, tiny ? 128u * 256u : 0u);
    EXPECT_EQ(report.nf4_differences, 0u);
    // Of each layer's 7 projections two matrices, of each expert where there are some; of 3 projections in 2 layers where the adapter has no more.
    const ModelConfig config = read_model_config(variant.model());
    std::size_t all = 0;
    for (const Projection p : all_projections) all += 2u * matrices_of(config, p) * (variant.stored.empty() ? config.num_layers : 1);
    // Of DoRA's one layer two matrices and the magnitudes.
    const std::size_t some = variant.family == "patterns" ? 12 : 21;
    EXPECT_EQ(report.gradients.size(), variant.family == "patterns" || variant.family == "dora" ? some : all + (tiny ? 1u : 0u));
    EXPECT_TRUE(report.passes(bars));
  }
}

TEST(Parity, EveryPathIsWithinTheBars) { expect_parity({}); }
TEST(Parity, WithGradientCheckpointing) { expect_parity({.activations = {Activations::recompute}}); }
TEST(Parity, WithMlpsInChunks) { expect_parity({.activations = {Activations::recompute}, .mlp_chunk = 64}); }
TEST(Parity, WithSmallHeadChunks) { expect_parity({.head_chunk = 64}); }
TEST(Parity, WithAHeadThatIsTrained) { expect_parity({.head_chunk = 64, .train_head = true}); }
TEST(Parity, OfOtherFamilies) {
  for (const char* family : {"llama", "mistral", "qwen2", "smollm3", "qwen3-moe"}) {
    SCOPED_TRACE(family);
    expect_parity({.family = family});
    expect_parity({.family = family, .activations = {Activations::recompute}});
  }
}
TEST(Parity, OfWeightsThatBitsandbytesHasQuantised) { expect_parity({.family = "bnb"}); }
TEST(Parity, OfScalesThatBitsandbytesHasQuantised) { expect_parity({.family = "bnb", .double_quant = true}); }
// Of attention, experts and routers, as transformers 4 has bitsandbytes quantise them all.
TEST(Parity, OfExpertsInFp4) { expect_parity({.family = "qwen3-moe", .stored = "fp4"}); }
// Ranks and alphas by module, some layers and projections alone.
TEST(Parity, OfAnAdapterWithPatterns) {
  expect_parity({.family = "patterns"});
  expect_parity({.family = "patterns", .activations = {Activations::recompute}});
}
TEST(Parity, OfAnAdapterOfDora) {
  expect_parity({.family = "dora"});
  expect_parity({.family = "dora", .activations = {Activations::recompute}});
  expect_parity({.family = "dora", .residency = Residency::cached});
}
TEST(Parity, WithCachedWeights) { expect_parity({.residency = Residency::cached}); }

}  // namespace
}  // namespace nibble::parity_test
