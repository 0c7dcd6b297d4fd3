#include "nibble/weights/lora_weights.h"

#include "nibble/base/error.h"
#include "nibble/base/rng.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace nibble {
namespace {

std::uint64_t aligned(std::uint64_t elements) { return (elements + lora_alignment - 1) / lora_alignment * lora_alignment; }

// Calls visit(layer, projection, matrix, first element) for every matrix in the order in which they lie, all of them of one rank,
// and returns the elements of all with their gaps.
template <typename Adapter, typename Visit>
std::uint64_t for_each_matrix(Adapter& adapter, std::uint32_t rank, const LoraModules& modules, Visit&& visit) {
  std::uint64_t place = 0;
  for (const LoraMatrix matrix : lora_matrices(adapter.config.use_dora)) {
    for (std::uint32_t layer = 0; layer < adapter.layers.size(); ++layer) {
      for (const Projection p : all_projections) {
        if (!adapter.at(layer, p).used()) continue;
        visit(layer, p, matrix, static_cast<std::ptrdiff_t>(place));
        const std::uint64_t own_rank = modules[layer][static_cast<std::size_t>(p)].rank;
        const std::uint64_t own = adapter.at(layer, p).matrix(matrix).size();
        place += aligned(matrix == LoraMatrix::magnitude ? own : own / own_rank * rank);
      }
    }
  }
  return place;
}

// Where the elements of a module's matrix lie among those of the rank to which it is padded.
struct Rows {
  std::size_t own, padded_to;

  Rows(std::uint32_t rank, std::uint32_t largest, LoraMatrix matrix)
      : own(matrix == LoraMatrix::b ? rank : 1), padded_to(matrix == LoraMatrix::b ? largest : 1) {}
  // What pads A comes after its rows, what pads B in each of them.
  std::size_t padded(std::size_t i) const { return i / own * padded_to + i % own; }
};

}  // namespace

std::uint64_t LoraWeights::parameter_count() const {
  std::uint64_t count = 0;
  for (const auto& layer : layers) {
    for (const LoraSlot& slot : layer) count += slot.a.size() + slot.b.size() + (slot.magnitude ? slot.magnitude.size() : 0);
  }
  return count;
}

namespace {

// In a buffer as large as that of B and the magnitudes, in whose places they lie.
void place_gains(gpu::Device& device, LoraWeights& weights, std::uint64_t elements) {
  const gpu::Tensor room = device.tensor(DType::f32, {static_cast<std::uint32_t>(elements)}, "DoRA gains");
  const auto place = [&](const gpu::Tensor& of) { return of.offset() / sizeof(float) - weights.b_begin; };
  for (auto& layer : weights.layers) {
    for (LoraSlot& slot : layer) {
      if (!slot.used()) continue;
      slot.b_read = room.part(place(slot.b), {slot.b.dim(0), slot.b.dim(1)});
      slot.gain = room.part(place(slot.magnitude), {slot.magnitude.dim(0)});
    }
  }
}

}  // namespace

LoraWeights upload_lora(gpu::Device& device, const ModelConfig& config, const LoraAdapter& adapter, bool trainable) {
  const LoraModules modules = adapter.modules();
  LoraWeights result{.rank = largest_rank(modules), .use_dora = adapter.config.use_dora};
  result.layers.resize(config.num_layers);
  const std::uint64_t total = for_each_matrix(adapter, result.rank, modules, [](auto&&...) {});
  check<UsageError>(total > 0 && total <= UINT32_MAX, "lora", "The adapter has {} parameters; 1 to {} fit.", total, UINT32_MAX);
  const auto elements = static_cast<std::uint32_t>(total);
  result.params = device.tensor(DType::f32, {elements}, "adapter");
  if (trainable) result.grads = device.tensor(DType::f32, {elements}, "adapter gradients");
  for_each_matrix(adapter, result.rank, modules, [&](std::uint32_t layer, Projection p, LoraMatrix matrix, std::ptrdiff_t place) {
    LoraSlot& slot = result.layers[layer][static_cast<std::size_t>(p)];
    auto [out, in] = lora_dims(config, result.rank, p, matrix);
    out *= matrices_of(config, p);
    const auto first = static_cast<std::uint64_t>(place);
    slot.scaling = static_cast<float>(modules[layer][static_cast<std::size_t>(p)].scaling);
    if (matrix == LoraMatrix::b && result.b_begin == 0) result.b_begin = first;
    const auto part_of = [&](const gpu::Tensor& flat) {
      return matrix == LoraMatrix::magnitude ? flat.part(first, {out}) : flat.part(first, {out, in});
    };
    constexpr std::array members{&LoraSlot::a, &LoraSlot::b, &LoraSlot::magnitude};
    constexpr std::array gradients{&LoraSlot::a_grad, &LoraSlot::b_grad, &LoraSlot::magnitude_grad};
    slot.*members[static_cast<std::size_t>(matrix)] = part_of(result.params);
    if (trainable) slot.*gradients[static_cast<std::size_t>(matrix)] = part_of(result.grads);
    if (matrix == LoraMatrix::b) slot.b_read = slot.b;
  });
  if (result.use_dora) place_gains(device, result, elements - result.b_begin);
  upload_flat(device, result.params, adapter);
  return result;
}

namespace {

struct Elements {
  std::uint64_t a = 0, behind_a = 0;
};

Elements elements_of(const ModelConfig& config, const LoraConfig& lora) {
  const LoraModules modules = modules_of(lora, config.num_layers);
  const std::uint32_t rank = largest_rank(modules);
  Elements elements;
  for (const auto& layer : modules) {
    for (const Projection p : all_projections) {
      if (!layer[static_cast<std::size_t>(p)].used()) continue;
      for (const LoraMatrix matrix : lora_matrices(lora.use_dora)) {
        const auto [out, in] = lora_dims(config, rank, p, matrix);
        (matrix == LoraMatrix::a ? elements.a : elements.behind_a) += aligned(matrices_of(config, p) * std::uint64_t{out} * in);
      }
    }
  }
  return elements;
}

}  // namespace

std::uint64_t lora_elements(const ModelConfig& config, const LoraConfig& lora) {
  const Elements elements = elements_of(config, lora);
  return elements.a + elements.behind_a;
}

std::uint64_t lora_bytes(const ModelConfig& config, const LoraConfig& lora, bool trainable) {
  const Elements elements = elements_of(config, lora);
  if (elements.a == 0) return 0;
  return (trainable ? 2 : 1) * gpu::buffer_bytes((elements.a + elements.behind_a) * sizeof(float)) +
         (lora.use_dora ? gpu::buffer_bytes(elements.behind_a * sizeof(float)) : 0);
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
      const std::array<std::pair<const gpu::Tensor*, std::string_view>, 3> parts{
          {{&slot.a, "lora_A"}, {&slot.b, "lora_B"}, {&slot.magnitude, "lora_magnitude_vector"}}};
      for (const auto& [tensor, name] : parts) {
        const std::uint64_t first = tensor->offset() / sizeof(float);
        if (!*tensor || element < first || element >= first + tensor->size()) continue;
        return fmt::format(" in the gradient of {}.{}", projection_module_name(layer, p), name);
      }
    }
  }
  return {};
}

void initialise_lora(LoraAdapter& adapter, std::uint64_t seed, bool gaussian) {
  const LoraModules modules = adapter.modules();
  for (std::size_t layer = 0; layer < adapter.layers.size(); ++layer) {
    for (std::size_t p = 0; p < adapter.layers[layer].size(); ++p) {
      LoraMatrices& matrices = adapter.layers[layer][p];
      if (!matrices.used()) continue;
      // A stream a matrix, so that its values do not depend on which others are adapted.
      Rng rng(seed, layer * 7 + p);
      const std::size_t rows = std::size_t{matrices_of(adapter.experts, static_cast<Projection>(p))} * modules[layer][p].rank;
      const auto in = static_cast<float>(matrices.a.size() / rows), rank = static_cast<float>(modules[layer][p].rank);
      const float bound = 1.0f / std::sqrt(in);
      for (float& value : matrices.a) value = gaussian ? rng.normal() / rank : rng.uniform(-bound, bound);
      std::fill(matrices.b.begin(), matrices.b.end(), 0.0f);
    }
  }
}

}  // namespace nibble
