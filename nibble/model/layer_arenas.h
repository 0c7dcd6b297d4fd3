#pragma once

#include "nibble/gpu/device.h"
#include "nibble/model/activation_choice.h"

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

// The tensors that several layers have alike. Where one by itself would be rounded up to a power of two (gpu::buffer_bytes), the layers'
// lie one after the other in one buffer. Different tensors of a layer have different buffers, since a kernel cannot read one part of a
// buffer and write another; so no kernel may read such a tensor of one layer and write that of another.
class LayerArenas {
 public:
  LayerArenas(gpu::Device& device, std::uint32_t layers, std::string_view label) : device_(&device), layers_(layers), label_(label) {}

  // What next() then gives is the next layer's.
  void begin_layer();
  // Its next tensor; of all layers they come in the same order, with the same shapes.
  gpu::Tensor next(DType dtype, std::initializer_list<std::uint32_t> dims);

  // What the tensors of so many layers take of the device's memory, of more layers never less.
  static std::uint64_t bytes(DType dtype, std::initializer_list<std::uint32_t> dims, std::uint32_t layers);

 private:
  gpu::Device* device_;
  std::uint32_t layers_, begun_ = 0;
  std::string label_;
  std::size_t next_ = 0;
  std::vector<gpu::Tensor> arenas_;  // by tensor; empty of those that have a buffer each
};

// Those of both parts of the layers, for make_activation_sets.
class ActivationArenas {
 public:
  ActivationArenas(gpu::Device& device, const ActivationChoices& choices, std::uint32_t layers)
      : attention_(device, activation_sets(choices, layers, LayerPart::attention), "activation"),
        mlp_(device, activation_sets(choices, layers, LayerPart::mlp), "activation") {}

  // The arenas of a part, where its next set begins.
  LayerArenas& begin_layer(LayerPart part) {
    LayerArenas& arenas = part == LayerPart::attention ? attention_ : mlp_;
    arenas.begin_layer();
    return arenas;
  }

 private:
  LayerArenas attention_, mlp_;
};

}  // namespace nibble
