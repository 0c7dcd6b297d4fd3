#include "nibble/train/merge_losses.h"

#include "nibble/base/error.h"
#include "nibble/model/expert_mlp.h"
#include "nibble/train/evaluate.h"
#include "nibble/weights/merger.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace nibble {
namespace {

// A merged matrix in f32, as the caches of ModelState have it: (in, out), or of an expert (out, in).
std::vector<float> merged(const Merger& merger, const std::string& name, std::uint32_t out, std::uint32_t in, bool turned) {
  std::vector<float> values(std::size_t{out} * in), piece;
  std::size_t first = 0;
  merge_matrix(merger.matrix_of({name, DType::f32, {out, in}}), [&](std::span<const std::byte> bytes) {
    piece.resize(bytes.size() / sizeof(float));
    std::memcpy(piece.data(), bytes.data(), bytes.size());
    for (std::size_t i = 0; i < piece.size(); ++i) {
      const std::size_t at = first + i;
      values[turned ? at % in * out + at / in : at] = piece[i];
    }
    first += piece.size();
  });
  return values;
}

void fill_caches(ModelState& state, const Merger& merger, const std::function<void(double)>& progress) {
  state.populate_weight_cache();
  const ModelConfig& config = merger.config();
  for (std::uint32_t layer = 0; layer < config.num_layers; ++layer) {
    for (const Projection p : all_projections) {
      const auto [out, in] = projection_dims(config, p);
      std::uint64_t first = 0;
      for (const std::string& module : module_names(config.experts.count, layer, p)) {
        const auto values = merged(merger, module + ".weight", out, in, !is_of_experts(config, p));
        state.device().write(state.weights().layers[layer].cached(p), std::as_bytes(std::span(values)), first);
        first += values.size() * sizeof(float);
      }
    }
    if (progress) progress((layer + 1.0) / config.num_layers);
  }
}

// The adapter is part of the merged weights; what it brings beside them is its head, or rows of tokens.
ModelState load(const MergeOptions& options, const Merger& merger, gpu::Device& device) {
  ModelState state = ModelState::load(device, options.model, {.path = ProductPath::f32, .trainable = false});
  if (!merger.head() && !merger.has_token_rows()) return state;
  LoraAdapter adapter = load_lora_adapter(options.adapters.front().folder, merger.config());
  adapter.config.use_dora = false;
  for (auto& layer : adapter.layers) {
    for (LoraMatrices& matrices : layer) std::fill(matrices.b.begin(), matrices.b.end(), 0.0f);
  }
  state.set_lora(adapter, false);
  return state;
}

}  // namespace

MergeLosses merge_losses(const MergeOptions& given, gpu::Device& device, const ExampleSet& set, std::uint32_t batch_size,
                         const std::function<void(double)>& progress) {
  MergeOptions options = given;
  MergeLosses losses;
  const BatchRoom room = room_of(set, evaluation_batches(set, batch_size));
  std::vector<MergeBase> bases{MergeBase::nf4, MergeBase::original};
  if (Merger(options).is_quantised()) bases.pop_back();
  for (std::size_t i = 0; i < bases.size(); ++i) {
    const auto part = [&](double begin, double done) {
      if (progress) progress((static_cast<double>(i) + begin + done / 2) / static_cast<double>(bases.size()));
    };
    options.onto = bases[i];
    const Merger merger(options);
    ModelState state = load(options, merger, device);
    fill_caches(state, merger, [&](double done) { part(0, done); });
    Model model(state, {.path = ProductPath::f32, .max_tokens = room.tokens, .max_labels = room.labels, .trainable = false});
    const double loss = evaluate(model, set, batch_size, [&](double done) { part(0.5, done); }).loss;
    check<Diverged>(std::isfinite(loss), options.model.string(), "The loss of the merged model is {}.", loss);
    if (bases[i] == MergeBase::nf4) {
      losses.nf4 = loss;
    } else {
      losses.original = loss;
    }
  }
  return losses;
}

}  // namespace nibble
