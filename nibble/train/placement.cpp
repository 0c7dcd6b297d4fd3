#include "nibble/train/placement.h"

namespace nibble {

Placement place(const TrainOptions& options, const gpu::Device& device, const ModelConfig& config, ProductPath path,
                BatchRoom room, std::uint64_t memory) {
  ModelOptions model{.path = path, .residency = choose_residency(config.num_layers, options.residency, options.stream_layers),
                     .stream = options.stream,
                     .gradient_checkpointing = options.gradient_checkpointing == Checkpointing::on,
                     .max_tokens = room.tokens, .max_labels = room.labels, .head_chunk = options.head_chunk,
                     .lora_dropout = options.lora.lora_dropout > 0};
  std::optional<TrainedHeadOptions> head;
  if (options.train_head) {
    head = {.path = path, .moments = options.head_moments, .place = options.head_state.value_or(MemoryPlace::device)};
  }
  // A tenth is left to the driver and to others.
  const auto fits = [&] {
    return memory == 0 || plan_memory(device, config, model, options.lora, head).total() <= memory / 10 * 9;
  };
  if (options.gradient_checkpointing == Checkpointing::automatic) model.gradient_checkpointing = !fits();
  // Computing again costs less than moving the head's state to and fro.
  if (head && !options.head_state && !fits()) head->place = MemoryPlace::host;
  return {model, head};
}

}  // namespace nibble
