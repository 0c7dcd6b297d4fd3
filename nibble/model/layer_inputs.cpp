#include "nibble/model/layer_inputs.h"

#include "nibble/base/error.h"
#include "nibble/gpu/host_tensor.h"
#include "nibble/model/layer_arenas.h"
#include "nibble/weights/residency.h"

#include <algorithm>
#include <utility>

namespace nibble {
namespace {

// A layer reads its input and writes the next one's, so these take turns in two arenas.
std::uint32_t resident_in_turn(const std::vector<bool>& away, std::uint32_t turn) {
  std::uint32_t count = 0;
  for (std::size_t i = turn; i < away.size(); i += 2) count += !away[i];
  return count;
}

}  // namespace

std::vector<bool> LayerInputs::away(const ModelConfig& config, const LayerInputsOptions& options) {
  std::vector<bool> away;
  for (const Residency residency : spread_streamed(config.num_layers, options.offloaded)) away.push_back(residency == Residency::streamed);
  away.push_back(options.offloaded >= most_places);
  return away;
}

LayerInputs::LayerInputs(gpu::Device& device, const ModelConfig& config, const LayerInputsOptions& options) {
  const auto make = [&](std::string_view label) {
    return device.tensor(DType::f32, {options.max_tokens, config.hidden_size}, label);
  };
  if (!options.trainable) {
    resident_ = {make("residual"), make("residual")};
    return;
  }
  const auto arenas_of = [&](std::uint32_t turn) { return LayerArenas(device, resident_in_turn(away(config, options), turn), "residual"); };
  std::array<LayerArenas, 2> arenas{arenas_of(0), arenas_of(1)};
  resident_.resize(config.num_layers + 1);
  for (std::uint32_t i = 0; const bool goes : away(config, options)) {
    const std::uint32_t layer = i++;
    rank_.push_back(goes ? static_cast<std::uint32_t>(host_.size()) : none);
    if (!goes) {
      arenas[layer % 2].begin_layer();
      resident_[layer] = arenas[layer % 2].next(DType::f32, {options.max_tokens, config.hidden_size});
    }
    if (!goes || layer == config.num_layers) continue;
    host_.push_back(gpu::host_tensor(device, DType::f32, {options.max_tokens, config.hidden_size}, "offloaded residual"));
    if (places_.size() < most_places) places_.push_back(make("residual on its way"));
  }
}

LayerInputs::Bytes LayerInputs::bytes(const gpu::AdapterInfo& info, const ModelConfig& config, const LayerInputsOptions& options) {
  const std::uint64_t one = gpu::buffer_bytes(DType::f32, {options.max_tokens, config.hidden_size});
  if (!options.trainable) return {.device = 2 * one};
  std::uint64_t device = std::min(options.offloaded, most_places) * one;
  for (const std::uint32_t turn : {0u, 1u}) {
    device += LayerArenas::bytes(DType::f32, {options.max_tokens, config.hidden_size}, resident_in_turn(away(config, options), turn));
  }
  return {.device = device,
          .host = options.offloaded * gpu::host_tensor_bytes(info, DType::f32, {options.max_tokens, config.hidden_size})};
}

gpu::Tensor LayerInputs::at(std::uint32_t layer, std::uint32_t tokens) const {
  if (rank_.empty()) return resident_[layer % 2].rows(0, tokens);
  const std::uint32_t rank = rank_.at(layer);
  return (rank == none ? resident_[layer] : places_[rank % places_.size()]).rows(0, tokens);
}

void LayerInputs::put_away(gpu::Recorder& recorder, std::uint32_t layer, std::uint32_t tokens) {
  const std::uint32_t rank = rank_.at(layer), after = rank_.at(layer + 1);
  // Over what lay there goes the last output.
  if (after == host_.size()) holds_[after % places_.size()] = none;
  if (rank == none) return;
  recorder.copy(at(layer, tokens), host_[rank].rows(0, tokens));
  holds_[rank % places_.size()] = rank;
}

void LayerInputs::copy_back(gpu::Recorder& recorder, std::uint32_t rank, std::uint32_t tokens) {
  if (std::exchange(holds_[rank % places_.size()], rank) == rank) return;
  recorder.copy(host_[rank].rows(0, tokens), places_[rank % places_.size()].rows(0, tokens));
}

void LayerInputs::bring_back(gpu::Recorder& recorder, std::uint32_t layer, std::uint32_t tokens) {
  const std::uint32_t rank = rank_.at(layer);
  if (rank == none) return;
  copy_back(recorder, rank, tokens);
  // The next one has the work of this layer, and of those between, to come behind.
  if (rank > 0 && places_.size() > 1) copy_back(recorder, rank - 1, tokens);
}

}  // namespace nibble
