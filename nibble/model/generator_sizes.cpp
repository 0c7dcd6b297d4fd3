#include "nibble/model/generator_sizes.h"

#include "nibble/gpu/together.h"
#include "nibble/kernels/best_scores.h"
#include "nibble/kernels/product_vec.h"
#include "nibble/model/generator.h"

namespace nibble {
namespace {

// Rows of a multiple of this begin where bindings may begin.
constexpr std::uint32_t key_rows = 16;

// A prompt in one piece is done by matrix units throughout (qkv_attention.h), and decodes each weight once; its activations take
// about 0.1 to 0.3 MB a token. Short prompts of several texts make a piece together, whose products are as fast from about 2,048 tokens on.
std::uint32_t piece_of(const gpu::AdapterInfo& info, const ModelConfig& config, const GeneratorOptions& options, std::uint32_t joined) {
  constexpr std::uint64_t large_memory = std::uint64_t{16} << 30;
  const bool large = info.type != gpu::AdapterType::software && info.memory_bytes >= large_memory;
  const auto at_most = [&](std::uint32_t tokens, std::uint32_t texts) {
    return static_cast<std::uint32_t>(std::min<std::uint64_t>(tokens, std::uint64_t{texts} * text_capacity(config, options)));
  };
  if (options.piece) return at_most(options.piece, joined);
  return std::max(at_most(large ? 4096 : 512, 1), at_most(large ? 2048 : 512, joined));
}

// Adapters of experts are allowed for wherever there are some.
LayersOptions layers_options(ProductPath path, std::uint32_t tokens, std::uint32_t rank, bool use_dora) {
  return {.path = path, .residency = {}, .max_tokens = tokens, .rank = rank, .use_dora = use_dora, .trainable = false,
          .activations = {Activations::recompute}, .expert_adapters = rank > 0};
}

}  // namespace

std::uint32_t text_capacity(const ModelConfig& config, const GeneratorOptions& options) {
  return std::max(1u, std::min(options.capacity, config.max_position_embeddings));
}

std::uint32_t key_capacity(const ModelConfig& config, const GeneratorOptions& options) {
  return (text_capacity(config, options) + key_rows - 1) / key_rows * key_rows;
}

HeadOptions generator_head_options(ProductPath path, const PassSizes& sizes) {
  return {.path = path, .max_labels = sizes.texts, .chunk_rows = sizes.texts, .trainable = false};
}

bool wants_step(const gpu::Device& device, const GeneratorOptions& options) {
  return options.step_workgroups ? *options.step_workgroups > 0 : device.info().type != gpu::AdapterType::software;
}

LayersOptions pieces_options(ProductPath path, const PassSizes& sizes, std::uint32_t rank, bool use_dora) {
  LayersOptions options = layers_options(path, std::max(sizes.piece, sizes.texts), rank, use_dora);
  if (sizes.on_matrices > 0) options.decodes_in_products = true;
  return options;
}

std::uint64_t keys_bytes(const ModelConfig& config, const GeneratorOptions& options, DType dtype) {
  return std::uint64_t{size_of(dtype)} * std::max(options.sequences, 1u) * config.num_kv_heads * key_capacity(config, options) * config.head_dim;
}

DType cache_dtype(const gpu::Device& device, const ModelConfig& config, const GeneratorOptions& options, std::uint32_t rank, bool use_dora) {
  const bool joint = texts_apart(device, config, layers_options(options.path, most_decoding_rows, rank, use_dora)) > 0;
  const bool fits = keys_bytes(config, options, DType::f16) <= device.info().limits.max_binding;
  if (!joint || !fits) return DType::f32;
  return options.key_dtype.value_or(device.info().type == gpu::AdapterType::software ? DType::f32 : DType::f16);
}

// On an H200 the products of a layer of 4B take 57 us with two texts by vectors, 77 with four, which is as many as are done at a time, and
// 91 to 96 with 2 to 16 on matrix units, between which there are more dispatches. Of experts each has few of the rows.
PassSizes pass_sizes(const gpu::Device& device, const ModelConfig& config, const GeneratorOptions& options, std::uint32_t rank, bool use_dora) {
  const bool never = device.info().type == gpu::AdapterType::software || config.has_experts();
  constexpr std::uint32_t usual = 5;
  const std::uint32_t wanted = options.least_on_matrices.value_or(never ? 0 : usual);
  const std::uint32_t sequences = std::max(options.sequences, 1u);
  PassSizes sizes{.piece = 0, .few = std::min(vec_rows, std::max(text_capacity(config, options), sequences)), .texts = 0, .joined = 1, .on_matrices = 0};
  const std::uint32_t apart = texts_apart(device, config, layers_options(options.path, most_decoding_rows, rank, use_dora));
  if (wanted > 0 && apart >= most_decoding_rows) sizes.on_matrices = wanted;
  sizes.texts = std::min(sequences, sizes.on_matrices > 0 ? most_decoding_rows : vec_rows);
  if (apart > 0) sizes.joined = sizes.texts;
  sizes.piece = piece_of(device.info(), config, options, sizes.joined);
  return sizes;
}

std::uint32_t Generator::texts_that_fit(const ModelState& state, GeneratorOptions options, std::uint64_t memory) {
  const gpu::Device& device = state.device();
  const ModelConfig& config = state.config();
  const std::uint32_t rank = state.has_lora() ? state.lora_config().rank : 0;
  const bool use_dora = state.has_lora() && state.lora_config().use_dora;
  options.path = state.path();
  options.sequences = std::min(options.sequences, pass_sizes(device, config, options, rank, use_dora).texts);
  const auto fit = [&] {
    const std::uint64_t keys = keys_bytes(config, options, cache_dtype(device, config, options, rank, use_dora));
    return keys <= device.info().limits.max_binding && bytes(device, config, options, rank, use_dora) <= memory;
  };
  while (options.sequences > 1 && !fit()) options.sequences = (options.sequences + 1) / 2;
  return options.sequences;
}

std::uint64_t Generator::bytes(const gpu::Device& device, const ModelConfig& config, const GeneratorOptions& options,
                               std::uint32_t rank, bool use_dora) {
  const PassSizes sizes = pass_sizes(device, config, options, rank, use_dora);
  const LayersBytes layers = layers_bytes(device, config, pieces_options(options.path, sizes, rank, use_dora));
  const std::uint32_t most = sizes.most();
  const std::uint64_t keys = gpu::together_bytes(device.info().limits, config.num_layers, keys_bytes(config, options, cache_dtype(device, config, options, rank, use_dora)));
  return layers.decoded_weights + layers.activations + layers.scratch + Head::bytes(device, config, generator_head_options(options.path, sizes)) +
         best_scores_room_bytes(sizes.texts, config.vocab_size) +
         2 * keys +
         (DecodeLayers::fits(config) ? DecodeLayers::bytes(device, config, rank, sizes.few) : 0) +
         (wants_step(device, options) && StepLayers::fits(config, use_dora) ? StepLayers::bytes(device, config, rank, options.step_workgroups.value_or(0)) : 0) +
         2 * gpu::buffer_bytes(DType::f32, {most, config.hidden_size}) + gpu::buffer_bytes(4ull * stream_parts * part_of_stream(most)) + gpu::buffer_bytes(DType::f32, {1}) +
         Rotations::bytes(config, text_capacity(config, options), most);
}

}  // namespace nibble
