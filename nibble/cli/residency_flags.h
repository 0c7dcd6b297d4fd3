#pragma once

#include "nibble/weights/residency.h"

#include <CLI/CLI.hpp>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace nibble::cli {

// Where frozen weights are kept: the options of every verb that loads a model for the GPU.
struct ResidencyFlags {
  std::string name = "resident", memory = "auto";
  std::filesystem::path folder;  // of layers on a disk
  std::optional<std::uint32_t> layers;  // that are streamed
  std::string embedding = "device", head = "device";
  std::uint32_t head_bits = 16;
  std::uint32_t slots = StreamOptions{}.slots;
  bool double_quant = false;

  enum class Cached { offered, left_out };
  void add_to(CLI::App& verb, Cached cached);

  Residency residency() const;
  // Empty where it is left to a plan ("auto", of verbs that set it as the default).
  std::optional<Residency> choice() const;
  StreamOptions stream() const;
  std::vector<Residency> of(std::uint32_t num_layers) const { return choose_residency(num_layers, residency(), layers); }
};

}  // namespace nibble::cli
