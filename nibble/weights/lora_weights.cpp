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

// Calls visit(layer, projection, matrix, first element) for every matrix in the order in which they lie, all of them of one rank,
// and returns the elements of all with their gaps.
template <typename Adapter, typename Visit>
std::uint64_t for_each_matrix(Adapter& adapter, std::uint32_t rank, const LoraModules& modules, Visit&& visit) {
  std::uint64_t place = 0;
  for (const LoraMatrix matrix : both_matrices) {
    for (std::uint32_t layer = 0; layer < adapter.layers.size(); ++layer) {
      for (const Projection p : all_projections) {
        if (!adapter.at(layer, p).used()) continue;
        visit(layer, p, matrix, static_cast<std::ptrdiff_t>(place));
        const std::uint64_t own_rank = modules[layer][static_cast<std::size_t>(p)].rank;
        const std::uint64_t size = adapter.at(layer, p).matrix(matrix).size() / own_rank * rank;
        place += (size + alignment - 1) / alignment * alignment;
      }
    }
  }
  return place;
}

// Where the elements of a module's matrix lie among those of the rank to which it is padded.
struct Rows {
  std::size_t own, padded_to;

  Rows(std::uint32_t rank, std::uint32_t largest, LoraMatrix matrix)
      : own(matrix == LoraMatrix::a ? 1 : rank), padded_to(matrix == LoraMatrix::a ? 1 : largest) {}
  // What pads A comes after its rows, what pads B in each of them.
  std::size_t padded(std::size_t i) const { return i / own * padded_to + i % own; }
};

}  // namespace

std::uint64_t LoraWeights::parameter_count() const {
  std::uint64_t count = 0;
  for (const auto& layer : layers) {
    for (const LoraSlot& slot : layer) count += slot.a.size() + slot.b.size();
  }
  return count;
}

LoraWeights upload_lora(gpu::Device& device, const ModelConfig& config, const LoraAdapter& adapter, bool trainable) {
  const LoraModules modules = adapter.modules();
  LoraWeights result{.rank = largest_rank(modules)};
  result.layers.resize(config.num_layers);
  const std::uint64_t total = for_each_matrix(adapter, result.rank, modules, [](auto&&...) {});
  check<UsageError>(total > 0 && total <= UINT32_MAX, "lora", "The adapter has {} parameters; 1 to {} fit.", total, UINT32_MAX);
  const auto elements = static_cast<std::uint32_t>(total);
  result.params = device.tensor(DType::f32, {elements}, "adapter");
  if (trainable) {
    result.grads = device.tensor(DType::f32, {elements}, "adapter gradients");
    result.first_moment = device.tensor(DType::f32, {elements}, "AdamW first moment");
    result.second_moment = device.tensor(DType::f32, {elements}, "AdamW second moment");
  }
  for_each_matrix(adapter, result.rank, modules, [&](std::uint32_t layer, Projection p, LoraMatrix matrix, std::ptrdiff_t place) {
    LoraSlot& slot = result.layers[layer][static_cast<std::size_t>(p)];
    auto [out, in] = lora_dims(config, result.rank, p, matrix);
    out *= matrices_of(config, p);
    const auto first = static_cast<std::uint64_t>(place);
    const bool is_a = matrix == LoraMatrix::a;
    slot.scaling = static_cast<float>(modules[layer][static_cast<std::size_t>(p)].scaling);
    if (!is_a && result.b_begin == 0) result.b_begin = first;
    (is_a ? slot.a : slot.b) = result.params.part(first, {out, in});
    if (trainable) (is_a ? slot.a_grad : slot.b_grad) = result.grads.part(first, {out, in});
  });
  upload_flat(device, result.params, adapter);
  return result;
}

std::uint64_t lora_bytes(const ModelConfig& config, const LoraConfig& lora, bool trainable) {
  const LoraModules modules = modules_of(lora, config.num_layers);
  const std::uint32_t rank = largest_rank(modules);
  std::uint64_t elements = 0;
  for (const auto& layer : modules) {
    for (const Projection p : all_projections) {
      if (!layer[static_cast<std::size_t>(p)].used()) continue;
      for (const LoraMatrix matrix : both_matrices) {
        const auto [out, in] = lora_dims(config, rank, p, matrix);
        elements += (matrices_of(config, p) * std::uint64_t{out} * in + alignment - 1) / alignment * alignment;
      }
    }
  }
  return (trainable ? 4 : 1) * gpu::buffer_bytes(elements * sizeof(float));
}

LoraAdapter download_lora(gpu::Device& device, const gpu::Tensor& flat, const LoraAdapter& like) {
  const auto values = device.read<float>(flat);
  const LoraModules modules = like.modules();
  const std::uint32_t rank = largest_rank(modules);
  LoraAdapter result = like;
  for_each_matrix(result, rank, modules, [&](std::uint32_t layer, Projection p, LoraMatrix matrix, std::ptrdiff_t place) {
    const Rows rows(modules[layer][static_cast<std::size_t>(p)].rank, rank, matrix);
    auto& target = result.at(layer, p).matrix(matrix);
    for (std::size_t i = 0; i < target.size(); ++i) target[i] = values[static_cast<std::size_t>(place) + rows.padded(i)];
  });
  return result;
}

void upload_flat(gpu::Device& device, const gpu::Tensor& flat, const LoraAdapter& adapter) {
  std::vector<float> values(flat.size());
  const LoraModules modules = adapter.modules();
  const std::uint32_t rank = largest_rank(modules);
  for_each_matrix(adapter, rank, modules, [&](std::uint32_t layer, Projection p, LoraMatrix matrix, std::ptrdiff_t place) {
    const Rows rows(modules[layer][static_cast<std::size_t>(p)].rank, rank, matrix);
    const auto& source = adapter.at(layer, p).matrix(matrix);
    for (std::size_t i = 0; i < source.size(); ++i) values[static_cast<std::size_t>(place) + rows.padded(i)] = source[i];
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
  const LoraModules modules = adapter.modules();
  for (std::size_t layer = 0; layer < adapter.layers.size(); ++layer) {
    for (std::size_t p = 0; p < adapter.layers[layer].size(); ++p) {
      LoraMatrices& matrices = adapter.layers[layer][p];
      if (!matrices.used()) continue;
      // A stream a matrix, so that its values do not depend on which others are adapted.
      Rng rng(seed, layer * 7 + p);
      const std::size_t rows = std::size_t{matrices_of(adapter.experts, static_cast<Projection>(p))} * modules[layer][p].rank;
      const auto in = static_cast<float>(matrices.a.size() / rows);
      const float bound = 1.0f / std::sqrt(in);
      for (float& value : matrices.a) value = rng.uniform(-bound, bound);
      std::fill(matrices.b.begin(), matrices.b.end(), 0.0f);
    }
  }
}

}  // namespace nibble
