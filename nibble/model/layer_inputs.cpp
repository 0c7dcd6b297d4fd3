#include "nibble/model/layer_inputs.h"

#include "nibble/base/error.h"
#include "nibble/gpu/host_tensor.h"
#include "nibble/weights/residency.h"

#include <algorithm>
#include <utility>

namespace nibble {

LayerInputs::LayerInputs(gpu::Device& device, const ModelConfig& config, const LayerInputsOptions& options) {
  const auto make = [&](std::string_view label) {
    return device.tensor(DType::f32, {options.max_tokens, config.hidden_size}, label);
  };
  if (!options.trainable) {
    resident_ = {make("residual"), make("residual")};
    return;
  }
  const auto offloaded = spread_streamed(config.num_layers, options.offloaded);
  resident_.resize(config.num_layers + 1);
  for (std::uint32_t i = 0; i <= config.num_layers; ++i) {
    const bool last = i == config.num_layers;
    const bool away = last ? options.offloaded >= most_places : offloaded[i] == Residency::streamed;
    rank_.push_back(away ? static_cast<std::uint32_t>(host_.size()) : none);
    if (!away) resident_[i] = make("residual");
    if (!away || last) continue;
    host_.push_back(gpu::host_tensor(device, DType::f32, {options.max_tokens, config.hidden_size}, "offloaded residual"));
    if (places_.size() < most_places) places_.push_back(make("residual on its way"));
  }
}

LayerInputs::Bytes LayerInputs::bytes(const gpu::AdapterInfo& info, const ModelConfig& config, const LayerInputsOptions& options) {
  const std::uint64_t one = gpu::buffer_bytes(DType::f32, {options.max_tokens, config.hidden_size});
  if (!options.trainable) return {.device = 2 * one};
  const std::uint32_t on_device = config.num_layers + 1 - saved(options.offloaded);
  return {.device = on_device * one,
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
