#include "nibble/model/activation_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace nibble {

Activations choice_of(const ActivationChoices& choices, std::uint32_t layer) {
  if (choices.empty()) return Activations::keep;
  return choices.size() == 1 ? choices.front() : choices.at(layer);
}

std::string describe(const ActivationChoices& choices, std::uint32_t layers) {
  std::array<std::uint32_t, 3> counts{};
  for (std::uint32_t layer = 0; layer < layers; ++layer) ++counts[static_cast<std::size_t>(choice_of(choices, layer))];
  constexpr const char* words[] = {"keep everything", "compute their MLP again", "compute all but their input again"};
  std::string text;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] > 0) text += fmt::format("{}{} {}", text.empty() ? "" : ", ", counts[i], words[i]);
  }
  return text;
}

std::uint32_t activation_sets(const ActivationChoices& choices, std::uint32_t layers, LayerPart part) {
  std::uint32_t kept = 0;
  for (std::uint32_t layer = 0; layer < layers; ++layer) kept += keeps(choice_of(choices, layer), part);
  return std::min(kept + 1, layers);
}

}  // namespace nibble
