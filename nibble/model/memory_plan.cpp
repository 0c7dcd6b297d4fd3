#include "nibble/model/memory_plan.h"

#include "nibble/gpu/together.h"
#include "nibble/weights/nf4_room.h"
#include "nibble/weights/scale_room.h"

#include <algorithm>

namespace nibble {
namespace {

using gpu::buffer_bytes;

std::uint64_t vectors_of_layer(const ModelConfig& config) {
  std::uint64_t bytes = 2 * buffer_bytes(DType::f32, {config.hidden_size});
  if (config.family.qk_norm) bytes += 2 * buffer_bytes(DType::f32, {config.head_dim});
  if (config.family.qkv_bias) bytes += buffer_bytes(DType::f32, {joint_dims(config, Joint::qkv).out});
  if (config.has_experts()) bytes += buffer_bytes(DType::f32, {config.experts.count, config.hidden_size});
  return bytes;
}

// Embedding and, where the model does not tie them and the base's is loaded, head.
TableBytes tables_bytes(const gpu::Device& device, const ModelConfig& config, const ModelOptions& options, bool has_head) {
  const TablePlaces places = table_places(options.stream, config.tie_word_embeddings);
  const auto one = [&](bool on_host) {
    return table_bytes(device.info(), config.vocab_size, config.hidden_size,
                       {.dtype = operand_dtype(options.path), .form = options.stream.tables, .on_host = on_host});
  };
  TableBytes all = one(places.embedding_on_host);
  if (config.tie_word_embeddings || !has_head) return all;
  const TableBytes head = one(places.head_on_host);
  return {.device = all.device + head.device, .host = all.host + head.host};
}

// Of the head that an adapter brings; the base's own stays beside it.
std::uint64_t adapter_head_bytes(const gpu::Device& device, const ModelConfig& config, const ModelOptions& options, const LoraConfig& lora) {
  if (!lora.saves_head) return 0;
  return table_bytes(device.info(), config.vocab_size, config.hidden_size, {.dtype = operand_dtype(options.path)}).device;
}

std::uint64_t frozen_bytes(const gpu::Device& device, const ModelConfig& config, const ModelOptions& options, const TableBytes& tables) {
  const std::uint32_t resident = config.num_layers - count_of(options.residency, config.num_layers, Residency::streamed);
  const std::uint64_t slots = stream_slots(options.residency, config.num_layers, options.stream), layer = nf4_layer_bytes(config, options.stream.double_quant);
  const std::uint64_t scales = options.stream.double_quant ? ScaleRoom::bytes(config) : 0;
  return scales + gpu::together_bytes(device.info().limits, resident, layer) + slots * buffer_bytes(layer) + config.num_layers * vectors_of_layer(config) +
         buffer_bytes(DType::f32, {config.hidden_size}) + tables.device;
}

// Of what is streamed, in host memory.
std::uint64_t host_weight_bytes(const gpu::Device& device, const ModelConfig& config, const ModelOptions& options, const TableBytes& tables) {
  const std::uint32_t streamed = count_of(options.residency, config.num_layers, Residency::streamed);
  const std::uint64_t layers = options.stream.on_disk ? DiskLayers::rooms_of(streamed) : streamed;
  return layers * gpu::host_buffer_bytes(device.info(), memory_of(device.info(), options.stream), nf4_layer_bytes(config, options.stream.double_quant)) + tables.host;
}

std::uint64_t disk_weight_bytes(const ModelConfig& config, const ModelOptions& options) {
  if (!options.stream.on_disk) return 0;
  return count_of(options.residency, config.num_layers, Residency::streamed) * nf4_layer_bytes(config, options.stream.double_quant);
}

// Beside the layers: batches and tables of angles; partial sums of the gradients' norm, statistics of a step, and of pairs.
std::uint64_t workspace_bytes(const gpu::Device& device, const ModelConfig& config, const ModelOptions& options,
                              std::uint64_t gradient_bytes, std::uint32_t token_tables) {
  constexpr std::uint64_t small_buffers = 16 * 1024, partials_of_binding = 4096;
  const std::uint32_t positions = std::min(options.max_tokens, config.max_position_embeddings);
  const std::uint64_t arrays = config.sliding_window > 0 ? 9 : 7;
  const std::uint64_t bindings = 2 + token_tables + gradient_bytes / device.info().limits.max_binding;
  return arrays * buffer_bytes(DType::u32, {options.max_tokens}) + Rotations::bytes(config, positions, options.max_tokens) +
         (options.trainable ? buffer_bytes(bindings * partials_of_binding) : 0) + small_buffers + gpu::params_arena_bytes;
}

}  // namespace

MemoryPlan plan_memory(const gpu::Device& device, const ModelConfig& config, const ModelOptions& options,
                       const LoraConfig& lora, const std::optional<TrainedHeadOptions>& trained_head,
                       const MomentsOptions& moments) {
  const LoraModules modules = modules_of(lora, config.num_layers);
  const LayersBytes layers = layers_bytes(device, config, layers_options(options, largest_rank(modules), adapts_experts(config, lora), lora.use_dora));
  const HeadOptions head = Head::settled(device.info(), config, head_options(device.info(), config, options, !trained_head));
  const TableBytes tables = tables_bytes(device, config, options, !trained_head);
  const std::uint64_t stream = buffer_bytes(DType::f32, {options.max_tokens, config.hidden_size});
  const LayerInputs::Bytes inputs = LayerInputs::bytes(device.info(), config, layer_inputs_options(options));
  PlacedArray::Bytes trained = trained_head ? TrainedHead::bytes(device.info(), config, *trained_head) : PlacedArray::Bytes{};
  const std::uint64_t partial_sums =
      trained_head ? Head::gradient_scratch(device, config, head) : 0;
  if (partial_sums > 0) trained.device += buffer_bytes(partial_sums * sizeof(float));
  const std::uint64_t elements = lora_elements(config, lora);
  const PlacedArray::Bytes kept = options.trainable ? Moments::bytes(device.info(), elements, moments) : PlacedArray::Bytes{};
  const std::uint64_t adapters = lora_bytes(config, lora, options.trainable) + (lora.use_dora ? Dora::bytes(config, modules) : 0) +
                                 TrainedTokens::bytes(config, lora, options.trainable) +
                                 (trained_head ? 0 : adapter_head_bytes(device, config, options, lora));
  return {.frozen_weights = frozen_bytes(device, config, options, tables),
          .decoded_weights = layers.decoded_weights,
          .adapters = adapters + kept.device,
          .layer_inputs = inputs.device + (options.trainable ? stream : 0),
          .activations = layers.activations,
          .scratch = layers.scratch,
          .head = Head::bytes(device, config, head),
          .trained_head = trained.device,
          .workspace = workspace_bytes(device, config, options, elements * sizeof(float) + trained.device,
                                        !lora.trained_tokens.empty() + !lora.trained_head_tokens.empty()),
          .host_weights = host_weight_bytes(device, config, options, tables),
          .host_head = trained.host,
          .host_moments = kept.host,
          .host_inputs = inputs.host,
          .host_staging = gpu::most_staging_bytes,
          .disk_weights = disk_weight_bytes(config, options)};
}

}  // namespace nibble
