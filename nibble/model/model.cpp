#include "nibble/model/model.h"

#include "nibble/base/error.h"
#include "nibble/kernels/embedding.h"
#include "nibble/kernels/neftune.h"
#include "nibble/kernels/nonfinite.h"
#include "nibble/model/rope.h"
#include "nibble/weights/nf4_room.h"

#include <algorithm>
#include <utility>

namespace nibble {
namespace {

// How many residual streams and sets of activations exist.
std::uint32_t residual_count(const ModelConfig& config, const ModelOptions& options) {
  return options.trainable ? config.num_layers + 1 : 2;
}

LayersOptions layers_options(const ModelOptions& options, std::uint32_t rank) {
  return {.path = options.path, .residency = options.residency, .max_tokens = options.max_tokens, .rank = rank,
          .trainable = options.trainable, .keeps_all = options.trainable && !options.gradient_checkpointing,
          .lora_dropout = options.lora_dropout};
}

HeadOptions head_options(const ModelOptions& options) {
  return {.path = options.path, .max_labels = options.max_labels, .chunk_rows = options.head_chunk,
          .trainable = options.trainable};
}

// With what the state has settled.
ModelOptions of_state(ModelOptions options, const ModelState& state) {
  options.path = state.path();
  std::vector<Residency> residency = state.residency();
  for (std::uint32_t layer = 0; layer < state.num_layers(); ++layer) {
    const bool cached = residency_of(options.residency, layer) == Residency::cached;
    if (cached && residency[layer] == Residency::resident) residency[layer] = Residency::cached;
  }
  options.residency = std::move(residency);
  return options;
}

std::uint64_t frozen_bytes(const ModelConfig& config, const ModelOptions& options, bool has_head) {
  const std::uint64_t streamed = count_of(options.residency, config.num_layers, Residency::streamed);
  const std::uint64_t on_device = config.num_layers - streamed + stream_slots(options.residency, config.num_layers, options.stream);
  const std::uint64_t table = std::uint64_t{config.vocab_size} * config.hidden_size * size_of(operand_dtype(options.path));
  const std::uint64_t norms = 4ull * (2 * config.hidden_size + 2 * config.head_dim) * config.num_layers;
  return on_device * nf4_layer_bytes(config) + norms + table * ((options.stream.embedding ? 0 : 1) + (config.tie_word_embeddings || !has_head ? 0 : 1));
}

// Of what is streamed, in host memory.
std::uint64_t host_bytes(const gpu::Device& device, const ModelConfig& config, const ModelOptions& options) {
  const std::uint64_t layers = count_of(options.residency, config.num_layers, Residency::streamed);
  const std::uint64_t table = std::uint64_t{config.vocab_size} * config.hidden_size * size_of(operand_dtype(options.path));
  return layers * gpu::host_buffer_bytes(device.info(), memory_of(device.info(), options.stream), nf4_layer_bytes(config)) +
         (options.stream.embedding ? gpu::host_buffer_bytes(device.info(), gpu::HostMemory::direct, table) : 0);
}

}  // namespace

MemoryPlan plan_memory(const gpu::Device& device, const ModelConfig& config, const ModelOptions& options,
                       const LoraConfig& lora, const std::optional<TrainedHeadOptions>& trained_head) {
  LoraConfig padded = lora;  // as the device has it
  padded.rank = largest_rank(modules_of(lora, config.num_layers));
  padded.rank_pattern.clear();
  padded.saves_head = false;
  const LayersBytes layers = layers_bytes(device, config, layers_options(options, padded.rank));
  const HeadOptions head = Head::settled(device.info(), config, head_options(options));
  const std::uint64_t stream_bytes = 4ull * options.max_tokens * config.hidden_size;
  const TrainedHead::Bytes trained = trained_head ? TrainedHead::bytes(config, *trained_head) : TrainedHead::Bytes{};
  const std::uint64_t partial_sums =
      trained_head ? product_tn_scratch(device, head.chunk_rows, config.vocab_size, config.hidden_size) : 0;
  return {.frozen_weights = frozen_bytes(config, options, !trained_head),
          .decoded_weights = layers.decoded_weights,
          .adapters = trainable_params(config, padded) * 4 * (options.trainable ? 4 : 1),
          .activations = residual_count(config, options) * stream_bytes + layers.activations,
          .scratch = layers.scratch + (options.trainable ? stream_bytes : 0),
          .head = Head::bytes(device, config, head),
          .trained_head = trained.device + partial_sums * sizeof(float),
          .host_head = trained.host,
          .host_weights = host_bytes(device, config, options)};
}

Model::Model(const ModelState& state, const ModelOptions& options)
    : device_(state.device()),
      config_(state.config()),
      weights_(state.weights()),
      options_(of_state(options, state)),
      adapters_(state.has_lora() ? &state.lora_mirror() : nullptr),
      lora_(adapters_ ? adapters_->on_device() : nullptr),
      layers_(make_layers(device_, config_, weights_, lora_, layers_options(options_, lora_ ? lora_->rank : 0))),
      streams_(device_, options.max_tokens, config_.sliding_window),
      head_(device_, config_, weights_, head_options(options_)) {
  for (std::uint32_t i = 0; i < residual_count(config_, options_); ++i) {
    residual_.push_back(device_.tensor(DType::f32, {options.max_tokens, config_.hidden_size}, "residual"));
  }
  if (options.trainable) dx_ = device_.tensor(DType::f32, {options.max_tokens, config_.hidden_size}, "residual gradient");
  const std::uint32_t positions = std::min(options.max_tokens, config_.max_position_embeddings);
  rope_ = device_.tensor<float>(DType::f32, {positions, config_.head_dim / 2, 2},
                                rope_table(positions, config_), "rope");
}

void Model::use_adapter(bool use) {
  head_.use_base(!use);
  lora_ = use && adapters_ ? adapters_->on_device() : nullptr;
}

LayerPass Model::pass(gpu::Recorder& recorder, const DeviceStream& stream, const LoraDropout& dropout) {
  if (adapters_) adapters_->on_device();
  return {.recorder = recorder, .stream = stream, .rope = rope_, .lora = lora_, .dropout = dropout};
}

void Model::embed(gpu::Recorder& recorder, const DeviceStream& stream) {
  record(recorder, Embedding{.tokens = stream.token_ids,
                             .table = weight_of(weights_.embedding),
                             .x = residual_[0].rows(0, stream.tokens)});
}

Tensor Model::run_layers(const LayerPass& pass, const NeftuneNoise& noise, LayerOrder order) {
  const DeviceStream& stream = pass.stream;
  embed(pass.recorder, stream);
  Tensor x = residual_[0].rows(0, stream.tokens);
  if (noise.alpha > 0) {
    record(pass.recorder, Neftune{.x = x, .segment_begin = stream.segment_begin, .segment_end = stream.segment_end,
                                  .alpha = noise.alpha, .seed = noise.seed});
  }
  weights_.go(order);
  layers_->begin(pass);
  for (std::uint32_t layer = 0; layer < config_.num_layers; ++layer) {
    const Tensor next = residual_[(layer + 1) % residual_.size()].rows(0, stream.tokens);
    layers_->forward(pass, layer, x, next);
    x = next;
  }
  return x;
}

Head::Loss Model::loss(gpu::Recorder& recorder, const DeviceStream& stream) {
  return head_.forward(recorder, stream, forward(recorder, stream));
}

Head::Loss Model::base_loss(gpu::Recorder& recorder, const DeviceStream& stream) {
  const bool used = lora_ != nullptr;
  use_adapter(false);
  const Head::Loss loss = head_.forward(recorder, stream, forward(recorder, stream));
  use_adapter(used);
  return loss;
}

Head::Loss Model::loss_and_gradients(gpu::Recorder& recorder, const DeviceStream& stream, const LossOptions& loss_options,
                                     const TrainingNoise& noise, const Tensor& d_head) {
  check(options_.trainable, "model", "The model was made without room for gradients.");
  check(options_.lora_dropout || noise.dropout.probability == 0, "model", "The model was made without dropout.");
  const LayerPass layers = pass(recorder, stream, noise.dropout);
  const Tensor last = run_layers(layers, noise.neftune, LayerOrder::up);
  const Tensor dx = dx_.rows(0, stream.tokens);
  const Head::Loss loss = head_.forward_backward(recorder, stream, last, loss_options, dx, d_head);
  weights_.go(LayerOrder::down);
  for (std::uint32_t layer = config_.num_layers; layer-- > 0;) {
    const Tensor input = residual_[layer].rows(0, stream.tokens);
    const bool kept = !options_.gradient_checkpointing || layer + 1 == config_.num_layers;
    if (!kept) layers_->forward(layers, layer, input, residual_[layer + 1].rows(0, stream.tokens));
    layers_->backward(layers, layer, input, dx, layer > 0);
  }
  return loss;
}

void Model::forward_layer(gpu::Recorder& recorder, const DeviceStream& stream, std::uint32_t layer, const Tensor& input,
                          const Tensor& output) {
  const LayerPass layers = pass(recorder, stream);
  layers_->begin(layers);
  layers_->forward(layers, layer, input, output);
}

void Model::backward_layer(gpu::Recorder& recorder, const DeviceStream& stream, std::uint32_t layer, const Tensor& input,
                           const Tensor& dx) {
  layers_->backward(pass(recorder, stream), layer, input, dx, true);
}

void Model::forward_mlp(gpu::Recorder& recorder, const DeviceStream& stream, std::uint32_t layer, const Tensor& input,
                        const Tensor& output) {
  const LayerPass layers = pass(recorder, stream);
  layers_->begin(layers);
  layers_->mlp_forward(layers, layer, input, output);
}

void Model::backward_mlp(gpu::Recorder& recorder, const DeviceStream& stream, std::uint32_t layer, const Tensor& dx) {
  layers_->mlp_backward(pass(recorder, stream), layer, dx);
}

std::optional<Model::NonFinitePlace> Model::find_nonfinite(const DeviceStream& stream) {
  const Tensor found = device_.tensor(DType::u32, {1}, "first non-finite");
  gpu::Recorder recorder(device_);
  const LayerPass layers = pass(recorder, stream);
  const auto look = [&](const Tensor& x, const std::string& where) -> std::optional<NonFinitePlace> {
    record(recorder, NonFinite{.x = x, .index = found});
    recorder.submit();
    const std::uint32_t index = device_.read<std::uint32_t>(found)[0];
    if (index == UINT32_MAX) return {};
    return NonFinitePlace{where, index / config_.hidden_size};
  };
  embed(recorder, stream);
  Tensor x = residual_[0].rows(0, stream.tokens);
  if (auto place = look(x, "the embedding")) return place;
  weights_.go(LayerOrder::round);
  layers_->begin(layers);
  for (std::uint32_t layer = 0; layer < config_.num_layers; ++layer) {
    const Tensor next = residual_[(layer + 1) % residual_.size()].rows(0, stream.tokens);
    layers_->forward(layers, layer, x, next);
    if (auto place = look(layers_->middle(layer, stream.tokens), fmt::format("the attention of layer {}", layer))) return place;
    if (auto place = look(next, fmt::format("the MLP of layer {}", layer))) return place;
    x = next;
  }
  return {};
}

}  // namespace nibble
