#include "nibble/train/step_work.h"

#include "nibble/weights/joint.h"

namespace nibble {
namespace {

double product(const ModelConfig& config, Joint joint) {
  const auto [out, in] = joint_dims(config, joint);
  const bool of_experts = config.has_experts() && (joint == Joint::gate_up || joint == Joint::down);
  return 2.0 * out * in * (of_experts ? config.experts.per_token : 1);
}

}  // namespace

StepWork::StepWork(const ModelConfig& config, std::uint32_t rank, double length, bool trains_head)
    : layer{.qkv = product(config, Joint::qkv), .o = product(config, Joint::o), .gate_up = product(config, Joint::gate_up),
            .down = product(config, Joint::down), .attention = 2.0 * length * config.num_heads * config.head_dim},
      layers(config.num_layers),
      head(2.0 * config.vocab_size * config.hidden_size),
      head_passes(trains_head ? 3 : 2) {
  for (const Projection p : all_projections) {
    const auto [out, in] = projection_dims(config, p);
    layer.adapters += 2.0 * rank * (out + in);
  }
}

double StepWork::step() const {
  const double products = layer.qkv + layer.o + layer.gate_up + layer.down;
  return layers * (2 * products + 3 * layer.adapters + 3.5 * layer.attention) + head_passes * head;
}

double StepWork::forward() const {
  return layers * (layer.qkv + layer.o + layer.gate_up + layer.down + layer.adapters + layer.attention);
}

double StepWork::again(Activations choice) const {
  // The down product is never made again, and the adapters are too little to be told apart.
  if (choice == Activations::keep) return 0;
  if (choice == Activations::recompute_mlp) return layer.gate_up + layer.adapters / 2;
  return layer.qkv + layer.o + layer.gate_up + layer.attention + layer.adapters;
}

double StepWork::again(const ActivationChoices& choices) const {
  double sum = 0;
  for (std::uint32_t i = 0; i + 1 < static_cast<std::uint32_t>(layers); ++i) sum += again(choice_of(choices, i));
  return sum;
}

}  // namespace nibble
