#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace nibble {

// What the backward pass of a layer finds of its forward pass; the rest is computed again. Values are the same bits either way.
enum class Activations {
  keep,           // everything
  recompute_mlp,  // attention's half; the MLP's is computed again
  recompute,      // the layer's input alone
};

enum class LayerPart { attention, mlp };

constexpr bool keeps(Activations choice, LayerPart part) {
  return choice == Activations::keep || (choice == Activations::recompute_mlp && part == LayerPart::attention);
}

// One choice a layer. A list with one entry is that of all layers, an empty one means that all keep everything.
using ActivationChoices = std::vector<Activations>;
Activations choice_of(const ActivationChoices& choices, std::uint32_t layer);

// "30 keep everything, 4 compute their MLP again, 2 compute all but their input again"
std::string describe(const ActivationChoices& choices, std::uint32_t layers);

// Sets of a part's tensors: one for each layer that keeps it, and one that all others share.
std::uint32_t activation_sets(const ActivationChoices& choices, std::uint32_t layers, LayerPart part);

// The tensors of every layer, where make(set, part) gives a set one part of its own.
template <typename Set, typename Make>
std::vector<Set> make_activation_sets(const ActivationChoices& choices, std::uint32_t layers, Make&& make) {
  constexpr LayerPart parts[] = {LayerPart::attention, LayerPart::mlp};
  Set shared;
  for (const LayerPart part : parts) {
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
      if (keeps(choice_of(choices, layer), part)) continue;
      make(shared, part);
      break;
    }
  }
  std::vector<Set> sets;
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    Set& set = sets.emplace_back(shared);
    for (const LayerPart part : parts) {
      if (keeps(choice_of(choices, layer), part)) make(set, part);
    }
  }
  return sets;
}

// The layers whose values the shared sets hold.
class SharedActivations {
 public:
  explicit SharedActivations(const ActivationChoices& choices) : choices_(choices) {}

  void forget() { attention_.reset(), mlp_.reset(); }
  void fill(std::uint32_t layer, LayerPart part) {
    if (!keeps(choice_of(choices_, layer), part)) of(part) = layer;
  }
  // Whether the part has to be computed again before the layer's backward pass. It then counts as filled.
  bool lacks(std::uint32_t layer, LayerPart part) {
    return !keeps(choice_of(choices_, layer), part) && std::exchange(of(part), layer) != layer;
  }

 private:
  std::optional<std::uint32_t>& of(LayerPart part) { return part == LayerPart::attention ? attention_ : mlp_; }

  ActivationChoices choices_;
  std::optional<std::uint32_t> attention_, mlp_;
};

}  // namespace nibble
