#include "nibble/model/expert_mlp.h"

#include "nibble/base/error.h"
#include "nibble/base/nf4_table.h"
#include "nibble/io/safetensors.h"
#include "nibble/model/model.h"
#include "nibble/quant/nf4.h"
#include "nibble/weights/bnb.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

namespace nibble::expert_mlp_test {
namespace {

constexpr std::uint32_t segment = 30;

// Segments of 30 random tokens; all but the last of each have a label.
struct Batch {
  std::vector<std::uint32_t> tokens, position, begin, end, label_rows, labels;

  Batch(std::uint32_t segments, std::uint32_t first) {
    for (std::uint32_t s = 0; s < segments; ++s) {
      Rng rng(first + s);
      for (std::uint32_t i = 0; i < segment; ++i) {
        tokens.push_back(rng.below(64));
        position.push_back(i);
        begin.push_back(s * segment);
        end.push_back((s + 1) * segment);
        if (i + 1 < segment) label_rows.push_back(s * segment + i);
      }
    }
    for (const std::uint32_t row : label_rows) labels.push_back(tokens[row + 1]);
  }
  TokenStream stream() const {
    return {.tokens = tokens, .position = position, .segment_begin = begin, .segment_end = end, .label_rows = label_rows, .labels = labels};
  }
};

ModelState golden_state(ProductPath path) {
  const std::string folder = test::source_path("tests/golden/qwen3-moe");
  return ModelState::load(test::device(), folder + "/model", {.path = path, .adapter = folder + "/adapter_nonzero"});
}

// Of all batches together.
std::vector<float> gradients(const ModelState& state, const std::vector<Batch>& batches, const ModelOptions& given, float factor) {
  ModelOptions options = given;
  for (const Batch& batch : batches) options.max_tokens = std::max(options.max_tokens, static_cast<std::uint32_t>(batch.tokens.size()));
  options.max_labels = options.max_tokens;
  Model model(state, options);
  const LoraWeights& lora = *state.lora_mirror().train();
  gpu::Recorder recorder(test::device());
  recorder.clear(lora.grads);
  for (const Batch& batch : batches) {
    const DeviceStream stream = model.upload(recorder, batch.stream());
    model.loss_and_gradients(recorder, stream, {.factor = factor});
  }
  recorder.submit();
  return test::device().read<float>(lora.grads);
}

TEST(ExpertMlp, GivesTheSameBitsWhateverIsComputedAgain) {
  for (const ProductPath path : test::product_paths()) {
    const ModelState state = golden_state(path);
    const std::vector<Batch> batch = {Batch(3, 1)};
    const auto kept = gradients(state, batch, {}, 0.01f);
    for (const ActivationChoices& choices :
         {ActivationChoices{Activations::recompute}, {Activations::recompute_mlp}, {Activations::keep, Activations::recompute}, {Activations::recompute, Activations::keep}}) {
      EXPECT_EQ(gradients(state, batch, {.activations = choices}, 0.01f), kept) << test::name_of(path) << " " << describe(choices, 2);
    }
    EXPECT_EQ(gradients(state, batch, {.one_decoded_room = true}, 0.01f), kept) << test::name_of(path);
  }
}

// More tokens than are sorted at a time. Sums over rows then end in between, so that their last bits differ.
TEST(ExpertMlp, TakesBatchesOfAnyLength) {
  const ModelState state = golden_state(ProductPath::f32);
  std::vector<Batch> parts;
  for (std::uint32_t first = 0; first < 72; first += 24) parts.emplace_back(24, first);
  const auto whole = gradients(state, {Batch(72, 0)}, {}, 0.001f), sum = gradients(state, parts, {}, 0.001f);
  EXPECT_LT(test::relative_error(whole, sum), 1e-5);
}

TEST(ExpertMlp, StreamedLayersGiveTheSameBits) {
  const std::vector<Batch> batch = {Batch(3, 1)};
  const auto resident = gradients(golden_state(ProductPath::f32), batch, {}, 0.01f);
  const std::string folder = test::source_path("tests/golden/qwen3-moe");
  const ModelState streamed = ModelState::load(test::device(), folder + "/model",
                                               {.path = ProductPath::f32, .adapter = folder + "/adapter_nonzero", .residency = {Residency::streamed, Residency::streamed}});
  EXPECT_EQ(gradients(streamed, batch, {}, 0.01f), resident);
}

// The model's folder with a router as bitsandbytes stores it, as one does that transformers 4 has quantised.
void quantise_router(const std::filesystem::path& from, const std::filesystem::path& to, const std::string& name, std::vector<float>& restored) {
  const Checkpoint whole(from);
  const auto values = whole.read_as_f32(name);
  std::vector<std::uint8_t> codes(nf4_packed_bytes(values.size()));
  std::vector<float> absmax(nf4_blocks(values.size()));
  nf4_quantize(DType::f32, std::as_bytes(std::span(values)), codes, absmax);
  restored.resize(values.size());
  nf4_dequantize(codes, absmax, restored);
  const std::string state = R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4, 64]})";
  const std::map<std::string, std::pair<TensorSpec, std::span<const std::byte>>> own = {
      {name, {{name, DType::u8, {static_cast<std::int64_t>(codes.size()), 1}}, std::as_bytes(std::span(codes))}},
      {name + ".absmax", {{name + ".absmax", DType::f32, {static_cast<std::int64_t>(absmax.size())}}, std::as_bytes(std::span(absmax))}},
      {name + ".quant_map", {{name + ".quant_map", DType::f32, {16}}, std::as_bytes(std::span(nf4_codes))}},
      {name + std::string(bnb_state_suffix),
       {{name + std::string(bnb_state_suffix), DType::u8, {static_cast<std::int64_t>(state.size())}}, std::as_bytes(std::span(state))}}};
  std::vector<TensorSpec> specs;
  for (const auto& [part, stored] : own) specs.push_back(stored.first);
  for (const auto& [other, entry] : whole.tensors()) {
    if (other != name) specs.push_back({other, *entry.tensor->dtype, entry.tensor->shape});
  }
  SafetensorsWriter writer(to, specs);
  for (const TensorSpec& spec : writer.tensors()) {
    if (const auto found = own.find(spec.name); found != own.end()) {
      writer.append(found->second.second);
      continue;
    }
    std::vector<std::byte> bytes(whole.at(spec.name).tensor->bytes);
    whole.read(spec.name, 0, bytes);
    writer.append(bytes);
  }
  writer.finish();
}

TEST(ExpertMlp, RestoresARouterInFourBits) {
  const test::TemporaryFolder folder;
  const std::filesystem::path golden = test::source_path("tests/golden/qwen3-moe/model");
  std::vector<float> restored;
  quantise_router(golden, folder / "model.safetensors", "model.layers.1.mlp.gate.weight", restored);
  std::filesystem::copy_file(golden / "config.json", folder / "config.json");
  const ModelState state = ModelState::load(test::device(), folder.path(), {.path = ProductPath::f32});
  const Checkpoint whole(golden);
  EXPECT_EQ(test::download(state.weights().layers[1].router), restored);
  EXPECT_NE(restored, whole.read_as_f32("model.layers.1.mlp.gate.weight"));
  EXPECT_EQ(test::download(state.weights().layers[0].router), whole.read_as_f32("model.layers.0.mlp.gate.weight"));
}

// Experts that were decoded once give what they give from NF4; attention's copies are turned, whose sums run otherwise.
TEST(ExpertMlp, ReadsACacheOfWeights) {
  ModelState state = golden_state(ProductPath::f32);
  const std::vector<Batch> batch = {Batch(3, 1)};
  const auto from_nf4 = gradients(state, batch, {}, 0.01f);
  state.populate_weight_cache();
  const Nf4Matrix& matrix = state.weights().layers[1].projection(Projection::down);
  std::vector<float> decoded(std::size_t{matrix.out} * matrix.in);
  nf4_dequantize(test::device().read<std::uint8_t>(matrix.packed), test::device().read<float>(matrix.absmax), decoded);
  EXPECT_EQ(test::download(state.weights().layers[1].cached(Projection::down)), decoded);
  EXPECT_FALSE(state.ffn_cache(1).has_value()) << "it is of one MLP";
  EXPECT_LT(test::relative_error(gradients(state, batch, {}, 0.01f), from_nf4), 1e-5);
}

}  // namespace
}  // namespace nibble::expert_mlp_test
