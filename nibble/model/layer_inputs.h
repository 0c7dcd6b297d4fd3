#pragma once

#include "nibble/gpu/recorder.h"
#include "nibble/weights/config.h"

#include <array>
#include <cstdint>
#include <vector>

namespace nibble {

struct LayerInputsOptions {
  std::uint32_t max_tokens = 0;
  bool trainable = true;        // all are there for the backward pass; else two in turn
  std::uint32_t offloaded = 0;  // layers whose input lies in host memory between the passes; gpu::has_host_tensors
};

// The residual stream (T, C) before each layer and after the last. Offloaded ones pass through a few places on the device: each
// is copied to host memory when its layer has gone forward, and back one such layer ahead of its backward pass. With as many as there
// are places the last layer's output, which the head alone reads, passes through them too.
class LayerInputs {
 public:
  LayerInputs(gpu::Device& device, const ModelConfig& config, const LayerInputsOptions& options);

  // Where the input of a layer lies on the device, or with as many as there are layers the last one's output.
  gpu::Tensor at(std::uint32_t layer, std::uint32_t tokens) const;
  // After the layer's forward pass, where a backward pass is to come.
  void put_away(gpu::Recorder& recorder, std::uint32_t layer, std::uint32_t tokens);
  // Before the layer's backward pass, in which layers come from the last to the first.
  void bring_back(gpu::Recorder& recorder, std::uint32_t layer, std::uint32_t tokens);

  struct Bytes {
    std::uint64_t device = 0, host = 0;
  };
  // One that is written, one that is read, and one on its way.
  static constexpr std::uint32_t most_places = 3;
  static Bytes bytes(const gpu::AdapterInfo& info, const ModelConfig& config, const LayerInputsOptions& options);

 private:
  static constexpr std::uint32_t none = UINT32_MAX;

  void copy_back(gpu::Recorder& recorder, std::uint32_t rank, std::uint32_t tokens);

  // Whether each input passes through places; of a model without a backward pass none does.
  static std::vector<bool> away(const ModelConfig& config, const LayerInputsOptions& options);

  std::vector<std::uint32_t> rank_;         // of each input among those that pass through places; none of the others
  std::vector<gpu::Tensor> resident_;       // by input, or two in turn; empty of the offloaded ones
  std::vector<gpu::Tensor> places_, host_;  // of the offloaded ones, host_ by rank
  std::array<std::uint32_t, most_places> holds_{none, none, none};  // ranks
};

}  // namespace nibble
