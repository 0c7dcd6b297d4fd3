#include "nibble/model/generator.h"

#include "nibble/base/error.h"
#include "nibble/kernels/embedding.h"
#include "nibble/kernels/product_vec.h"
#include "nibble/kernels/qk_norm_rope.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace nibble {
namespace {

// Rows of a multiple of this begin where bindings may begin.
constexpr std::uint32_t key_rows = 16;

std::uint32_t capacity_of(const ModelConfig& config, const GeneratorOptions& options) {
  return std::max(1u, std::min(options.capacity, config.max_position_embeddings));
}

// A prompt in one piece is done by matrix units throughout (qkv_attention.h), and decodes each weight once; its activations take
// about 0.1 to 0.3 MB a token.
std::uint32_t piece_of(const gpu::AdapterInfo& info, const ModelConfig& config, const GeneratorOptions& options) {
  constexpr std::uint64_t large_memory = std::uint64_t{16} << 30;
  const bool large = info.type != gpu::AdapterType::software && info.memory_bytes >= large_memory;
  const std::uint32_t usual = large ? 4096 : 512;
  return std::clamp(options.piece ? options.piece : usual, 1u, capacity_of(config, options));
}

std::uint32_t key_capacity(const ModelConfig& config, const GeneratorOptions& options) {
  return (capacity_of(config, options) + key_rows - 1) / key_rows * key_rows;
}

// What a piece uploads at once, each part where a binding may begin: ids, positions, ends of keys, and the last row.
constexpr std::uint32_t stream_parts = 4;
std::uint32_t part_of_stream(std::uint32_t tokens) { return (tokens + 63) / 64 * 64; }

HeadOptions head_options(ProductPath path) {
  return {.path = path, .max_labels = 1, .chunk_rows = 1, .trainable = false};
}

LayersOptions layers_options(ProductPath path, std::uint32_t tokens, std::uint32_t rank) {
  return {.path = path, .residency = Residency::resident, .max_tokens = tokens, .rank = rank, .trainable = false, .keeps_all = false};
}

}  // namespace

Generator::Generator(const ModelState& state, const GeneratorOptions& options)
    : device_(state.device()),
      config_(state.config()),
      weights_(state.weights()),
      adapters_(state.has_lora() ? &state.lora_mirror() : nullptr),
      capacity_(capacity_of(config_, options)),
      head_(device_, config_, weights_, head_options(state.path())),
      lora_(adapters_ ? adapters_->on_device() : nullptr),
      most_tokens_(piece_of(device_.info(), config_, options)),
      readback_(device_, std::uint64_t{config_.vocab_size} * sizeof(float)),
      logits_(config_.vocab_size) {
  const std::uint32_t rank = lora_ ? lora_->rank : 0;
  pieces_ = make_layers(device_, config_, weights_, lora_, layers_options(state.path(), most_tokens_, rank));
  if (DecodeLayers::fits(config_)) {
    most_steps_ = std::min(vec_rows, capacity_);
    steps_.emplace(device_, config_, weights_, rank, most_steps_);
  }
  const std::uint32_t most = std::max(most_tokens_, most_steps_), rows = key_capacity(config_, options);
  for (std::uint32_t layer = 0; layer < config_.num_layers; ++layer) {
    const auto make = [&](std::string_view label) {
      return device_.tensor(DType::f32, {config_.num_kv_heads, rows, config_.head_dim}, label);
    };
    keys_.push_back({.k = make("keys"), .v = make("values")});
  }
  stream_room_ = device_.tensor(DType::u32, {stream_parts * part_of_stream(most)}, "stream");
  segment_begin_ = device_.tensor(DType::u32, {most}, "segment begin");
  for (Tensor& residual : residual_) residual = device_.tensor(DType::f32, {most, config_.hidden_size}, "residual");
  rope_ = device_.tensor<float>(DType::f32, {capacity_, config_.head_dim / 2, 2},
                               rope_table(capacity_, config_.head_dim, config_.rope_theta), "rope");
}

std::uint64_t Generator::bytes(const gpu::Device& device, const ModelConfig& config, const GeneratorOptions& options,
                               std::uint32_t rank) {
  const std::uint32_t piece = piece_of(device.info(), config, options), few = std::min(vec_rows, capacity_of(config, options));
  const LayersBytes layers = layers_bytes(device, config, layers_options(options.path, piece, rank));
  const std::uint64_t keys = 8ull * config.num_layers * config.num_kv_heads * key_capacity(config, options) * config.head_dim;
  return layers.decoded_weights + layers.activations + layers.scratch + Head::bytes(device, config, head_options(options.path)) +
         keys + (DecodeLayers::fits(config) ? DecodeLayers::bytes(device, config, rank, few) : 0) +
         std::uint64_t{std::max(piece, few)} * (8ull * config.hidden_size + 4) +
         4ull * stream_parts * part_of_stream(std::max(piece, few)) +
         4ull * capacity_of(config, options) * config.head_dim;
}

void Generator::use_adapter(bool use) {
  const LoraWeights* wanted = use && adapters_ ? adapters_->on_device() : nullptr;
  if (wanted == lora_) return;
  head_.use_base(!use);
  lora_ = wanted;
  seen_.clear();
}

// The piece follows what has been seen: every token attends to all before it. label_rows is its last token.
DeviceStream Generator::upload(std::span<const std::uint32_t> piece) {
  const std::uint32_t count = static_cast<std::uint32_t>(piece.size()), past = seen(), part = part_of_stream(count);
  std::vector<std::uint32_t> values(std::size_t{stream_parts} * part);
  const std::span all(values);
  std::copy(piece.begin(), piece.end(), values.begin());
  const auto position = all.subspan(part, count), key_end = all.subspan(2 * std::size_t{part}, count);
  std::iota(position.begin(), position.end(), past);
  std::iota(key_end.begin(), key_end.end(), past + 1);
  values[3 * std::size_t{part}] = count - 1;
  device_.write(stream_room_.part(0, {stream_parts * part}), std::as_bytes(all));
  const auto view = [&](std::uint32_t index, std::uint32_t length) {
    return stream_room_.part(std::uint64_t{index} * part, {length});
  };
  return {.tokens = count, .labels = 1, .pairs = std::accumulate(key_end.begin(), key_end.end(), std::uint64_t{0}),
          .token_ids = view(0, count), .position = view(1, count), .segment_begin = segment_begin_.view({count}),  // zeros
          .segment_end = {}, .key_end = view(2, count), .label_rows = view(3, 1), .label_ids = {}, .sides = {}, .reference = {}};
}

Tensor Generator::run_layers(gpu::Recorder& recorder, const DeviceStream& stream, bool few) {
  const auto residual = [&](std::uint32_t layer) { return residual_[layer % 2].rows(0, stream.tokens); };
  record(recorder, Embedding{.tokens = stream.token_ids, .table = weight_of(weights_.embedding), .x = residual(0)});
  if (few) {
    const DecodeLayers::Pass pass{recorder, stream, rope_, lora_, seen()};
    for (std::uint32_t layer = 0; layer < config_.num_layers; ++layer) {
      steps_->forward(pass, layer, residual(layer), residual(layer + 1), keys_[layer].k, keys_[layer].v);
    }
    return residual(config_.num_layers);
  }
  const LayerPass pass{.recorder = recorder, .stream = stream, .rope = rope_, .lora = lora_, .caches = keys_, .first_key = seen()};
  pieces_->begin(pass);
  for (std::uint32_t layer = 0; layer < config_.num_layers; ++layer) pieces_->forward(pass, layer, residual(layer), residual(layer + 1));
  return residual(config_.num_layers);
}

std::span<const float> Generator::logits(std::span<const std::uint32_t> tokens) {
  check<DataError>(!tokens.empty() && tokens.size() <= capacity_, "generator",
                   "A text of {} tokens came; there is room for 1 to {}.", tokens.size(), capacity_);
  for (const std::uint32_t token : tokens) {
    check<DataError>(token < config_.vocab_size, "generator", "Token {} came; the model's vocabulary ends at {}.", token,
                     config_.vocab_size - 1);
  }
  if (adapters_ && lora_) {
    adapters_->on_device();
    if (std::exchange(adapters_version_, adapters_->version()) != adapters_->version()) seen_.clear();
  }
  // The last token is always computed, since its logits are wanted.
  const auto known = std::mismatch(seen_.begin(), seen_.end(), tokens.begin(), tokens.end() - 1).first;
  seen_.erase(known, seen_.end());

  Tensor logits;
  while (seen_.size() < tokens.size()) {
    const std::size_t left = tokens.size() - seen_.size();
    const bool few = left <= most_steps_;
    const auto piece = tokens.subspan(seen_.size(), std::min<std::size_t>(left, few ? most_steps_ : most_tokens_));
    const DeviceStream stream = upload(piece);
    gpu::Recorder recorder(device_, few ? gpu::Pace::even : gpu::Pace::growing);
    const Tensor x = run_layers(recorder, stream, few);
    if (piece.size() == left) logits = head_.logits(recorder, x, stream.label_rows, 1);
    recorder.submit();
    seen_.insert(seen_.end(), piece.begin(), piece.end());
    computed_ += piece.size();
  }
  readback_.begin(logits);
  readback_.finish(std::as_writable_bytes(std::span(logits_)));
  return logits_;
}

}  // namespace nibble
