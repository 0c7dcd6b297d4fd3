#include "nibble/weights/lora_weights.h"

#include "nibble/base/error.h"
#include "nibble/base/rng.h"

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

// Where bindings may begin on every adapter: 256 bytes.
constexpr std::uint64_t alignment = 64;

constexpr LoraMatrix both_matrices[] = {LoraMatrix::a, LoraMatrix::b};

// Calls visit(layer, projection, matrix, first element) for every matrix in the order in which they lie, and returns the
// elements of all with their gaps.
template <typename Adapter, typename Visit>
std::uint64_t for_each_matrix(Adapter& adapter, Visit&& visit) {
  std::uint64_t place = 0;
  for (const LoraMatrix matrix : both_matrices) {
    for (std::uint32_t layer = 0; layer < adapter.layers.size(); ++layer) {
      for (const Projection p : all_projections) {
        if (!adapter.at(layer, p).used()) continue;
        visit(layer, p, matrix, static_cast<std::ptrdiff_t>(place));
        place += (adapter.at(layer, p).matrix(matrix).size() + alignment - 1) / alignment * alignment;
      }
    }
  }
  return place;
}

}  // namespace

std::uint64_t LoraWeights::parameter_count() const {
  std::uint64_t count = 0;
  for (const auto& layer : layers) {
    for (const LoraSlot& slot : layer) count += slot.a.size() + slot.b.size();
  }
  return count;
}

LoraWeights upload_lora(gpu::Device& device, const ModelConfig& config, const LoraAdapter& adapter, bool trainable) {
  LoraWeights result{.rank = adapter.config.rank, .scaling = static_cast<float>(adapter.config.scaling())};
  result.layers.resize(config.num_layers);
  const std::uint64_t total = for_each_matrix(adapter, [](auto&&...) {});
  check<UsageError>(total > 0 && total <= UINT32_MAX, "lora", "The adapter has {} parameters; 1 to {} fit.", total, UINT32_MAX);
  const auto elements = static_cast<std::uint32_t>(total);
  result.params = device.tensor(DType::f32, {elements}, "adapter");
  if (trainable) {
    result.grads = device.tensor(DType::f32, {elements}, "adapter gradients");
    result.first_moment = device.tensor(DType::f32, {elements}, "AdamW first moment");
    result.second_moment = device.tensor(DType::f32, {elements}, "AdamW second moment");
  }
  for_each_matrix(adapter, [&](std::uint32_t layer, Projection p, LoraMatrix matrix, std::ptrdiff_t place) {
    LoraSlot& slot = result.layers[layer][static_cast<std::size_t>(p)];
    const auto [out, in] = lora_dims(config, result.rank, p, matrix);
    const auto first = static_cast<std::uint64_t>(place);
    const bool is_a = matrix == LoraMatrix::a;
    if (!is_a && result.b_begin == 0) result.b_begin = first;
    (is_a ? slot.a : slot.b) = result.params.part(first, {out, in});
    if (trainable) (is_a ? slot.a_grad : slot.b_grad) = result.grads.part(first, {out, in});
  });
  upload_flat(device, result.params, adapter);
  return result;
}

LoraAdapter download_lora(gpu::Device& device, const gpu::Tensor& flat, const LoraAdapter& like) {
  const auto values = device.read<float>(flat);
  LoraAdapter result = like;
  for_each_matrix(result, [&](std::uint32_t layer, Projection p, LoraMatrix matrix, std::ptrdiff_t place) {
    auto& target = result.at(layer, p).matrix(matrix);
    std::copy_n(values.begin() + place, target.size(), target.begin());
  });
  return result;
}

void upload_flat(gpu::Device& device, const gpu::Tensor& flat, const LoraAdapter& adapter) {
  std::vector<float> values(flat.size());
  for_each_matrix(adapter, [&](std::uint32_t layer, Projection p, LoraMatrix matrix, std::ptrdiff_t place) {
    const auto& source = adapter.at(layer, p).matrix(matrix);
    std::copy(source.begin(), source.end(), values.begin() + place);
  });
  device.write(flat, std::as_bytes(std::span(values)));
}

std::string describe_element(const LoraWeights& weights, std::uint64_t element) {
  for (std::uint32_t layer = 0; layer < weights.layers.size(); ++layer) {
    for (const Projection p : all_projections) {
      const LoraSlot& slot = weights.slot(layer, p);
      if (!slot.used()) continue;
      for (const LoraMatrix matrix : both_matrices) {
        const gpu::Tensor& tensor = matrix == LoraMatrix::a ? slot.a : slot.b;
        const std::uint64_t first = tensor.offset() / sizeof(float);
        if (element < first || element >= first + tensor.size()) continue;
        return fmt::format(" in the gradient of {}.lora_{}", projection_module_name(layer, p),
                           matrix == LoraMatrix::a ? "A" : "B");
      }
    }
  }
  return {};
}

void initialise_lora(LoraAdapter& adapter, std::uint64_t seed) {
  for (std::size_t layer = 0; layer < adapter.layers.size(); ++layer) {
    for (std::size_t p = 0; p < adapter.layers[layer].size(); ++p) {
      LoraMatrices& matrices = adapter.layers[layer][p];
      if (!matrices.used()) continue;
      // A stream a matrix, so that its values do not depend on which others are adapted.
      Rng rng(seed, layer * 7 + p);
      const auto in = static_cast<float>(matrices.a.size() / adapter.config.rank);
      const float bound = 1.0f / std::sqrt(in);
      for (float& value : matrices.a) value = rng.uniform(-bound, bound);
      std::fill(matrices.b.begin(), matrices.b.end(), 0.0f);
    }
  }
}

}  // namespace nibble
