#pragma once

#include "nibble/model/activation_choice.h"
#include "nibble/weights/config.h"

namespace nibble {

// Multiplications and additions of one token of a training step, by what they are for: one pass over one layer.
struct LayerWork {
  double qkv = 0, o = 0, gate_up = 0, down = 0;  // products with frozen weights
  double attention = 0;                          // half the square of a segment of `length`
  double adapters = 0;
};

struct StepWork {
  LayerWork layer;
  double layers = 0;
  double head = 0;      // one pass
  int head_passes = 2;  // three where it is trained

  StepWork(const ModelConfig& config, std::uint32_t rank, double length, bool trains_head);

  // Of all layers and the head. Backward: the frozen products once, those of the adapters twice, attention 2.5 times.
  double step() const;
  // Of the layers' forward pass.
  double forward() const;
  // What a layer's choice computes again.
  double again(Activations choice) const;
  // The same of all layers. Of the last one to go forward everything is still there.
  double again(const ActivationChoices& choices) const;
};

}  // namespace nibble
