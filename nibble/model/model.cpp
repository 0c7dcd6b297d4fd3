#include "nibble/model/model.h"

#include "nibble/base/error.h"
#include "nibble/kernels/embedding.h"
#include "nibble/kernels/neftune.h"
#include "nibble/kernels/nonfinite.h"
#include "nibble/kernels/qk_norm_rope.h"

#include <algorithm>
#include <utility>

namespace nibble {
namespace {

// How many residual streams and sets of activations exist.
std::uint32_t residual_count(const ModelConfig& config, const ModelOptions& options) {
  return options.trainable ? config.num_layers + 1 : 2;
}

std::uint32_t activation_count(const ModelConfig& config, const ModelOptions& options) {
  return options.trainable && !options.gradient_checkpointing ? config.num_layers : 1;
}

ActivationShape activation_shape(const ModelConfig& config, const ModelOptions& options, std::uint32_t rank) {
  return {.tokens = options.max_tokens, .config = &config, .path = options.path, .rank = rank};
}

HeadOptions head_options(const ModelOptions& options) {
  return {.path = options.path, .max_labels = options.max_labels, .chunk_rows = options.head_chunk,
          .trainable = options.trainable};
}

ModelOptions of_path(ModelOptions options, ProductPath path) {
  options.path = path;
  return options;
}

std::uint64_t frozen_bytes(const ModelConfig& config, ProductPath path, bool has_head) {
  std::uint64_t projections = 0;
  for (const Projection p : all_projections) {
    const auto [out, in] = projection_dims(config, p);
    projections += std::uint64_t{out} * in;
  }
  const std::uint64_t table = std::uint64_t{config.vocab_size} * config.hidden_size * size_of(operand_dtype(path));
  const std::uint64_t norms = 4ull * (2 * config.hidden_size + 2 * config.head_dim) * config.num_layers;
  return config.num_layers * (projections / 2 + projections / 16) + norms + table * (config.tie_word_embeddings || !has_head ? 1 : 2);
}

}  // namespace

MemoryPlan plan_memory(const gpu::Device& device, const ModelConfig& config, const ModelOptions& options,
                       const LoraConfig& lora, const std::optional<TrainedHeadOptions>& trained_head) {
  const ActivationShape shape = activation_shape(config, options, lora.rank);
  HeadOptions head = head_options(options);
  if (head.chunk_rows == 0) head.chunk_rows = Head::default_chunk_rows(device.info().limits, config.vocab_size);
  head.chunk_rows = std::min((head.chunk_rows + 63) / 64 * 64, std::max(1u, head.max_labels));
  const std::uint64_t stream_bytes = 4ull * options.max_tokens * config.hidden_size;
  LoraConfig matrices = lora;
  matrices.saves_head = false;
  const TrainedHead::Bytes trained = trained_head ? TrainedHead::bytes(config, *trained_head) : TrainedHead::Bytes{};
  const std::uint64_t partial_sums =
      trained_head ? product_tn_scratch(device, head.chunk_rows, config.vocab_size, config.hidden_size) : 0;
  return {.frozen_weights = frozen_bytes(config, options.path, !trained_head),
          .decoded_weights = FrozenWeights::decoded_bytes(config, options.path, options.residency),
          .adapters = trainable_params(config, matrices) * 4 * (options.trainable ? 4 : 1),
          .activations = residual_count(config, options) * stream_bytes +
                         activation_count(config, options) * layer_activation_bytes(shape),
          .scratch = scratch_bytes(device, shape, options.trainable) + (options.trainable ? stream_bytes : 0),
          .head = Head::bytes(config, head),
          .trained_head = trained.device + partial_sums * sizeof(float),
          .host_head = trained.host};
}

Model::Model(const ModelState& state, const ModelOptions& options)
    : device_(state.device()),
      config_(state.config()),
      weights_(state.weights()),
      options_(of_path(options, state.path())),
      adapters_(state.has_lora() ? &state.lora_mirror() : nullptr),
      frozen_(device_, weights_, options_.path, options.residency),
      linear_{.path = options_.path, .frozen = &frozen_, .lora = adapters_ ? adapters_->on_device() : nullptr},
      streams_(device_, options.max_tokens),
      head_(device_, config_, weights_, head_options(options_)) {
  const ActivationShape shape = activation_shape(config_, options_, lora() ? lora()->rank : 0);
  for (std::uint32_t i = 0; i < residual_count(config_, options_); ++i) {
    residual_.push_back(device_.tensor(DType::f32, {options.max_tokens, config_.hidden_size}, "residual"));
  }
  for (std::uint32_t i = 0; i < activation_count(config_, options_); ++i) {
    activations_.push_back(make_layer_activations(device_, shape));
  }
  scratch_ = make_scratch(device_, shape, options.trainable);
  if (options.trainable) dx_ = device_.tensor(DType::f32, {options.max_tokens, config_.hidden_size}, "residual gradient");
  const std::uint32_t positions = std::min(options.max_tokens, config_.max_position_embeddings);
  rope_ = device_.tensor<float>(DType::f32, {positions, config_.head_dim / 2, 2},
                                rope_table(positions, config_.head_dim, config_.rope_theta), "rope");
}

void Model::use_adapter(bool use) {
  head_.use_base(!use);
  linear_.lora = use && adapters_ ? adapters_->on_device() : nullptr;
}

LayerContext Model::context(gpu::Recorder& recorder, const DeviceStream& stream) {
  if (adapters_) adapters_->on_device();
  return {.recorder = recorder, .config = config_, .weights = weights_, .linear = linear_, .stream = stream, .rope = rope_};
}

LayerActivations Model::activations_of(std::uint32_t layer, std::uint32_t tokens) const {
  return first_tokens(activations_[layer % activations_.size()], config_, tokens);
}

void Model::embed(gpu::Recorder& recorder, const DeviceStream& stream) {
  record(recorder, Embedding{.tokens = stream.token_ids,
                             .table = {.data = weights_.embedding.data, .scale = weights_.embedding.scale},
                             .x = residual_[0].rows(0, stream.tokens)});
}

Tensor Model::run_layers(gpu::Recorder& recorder, const DeviceStream& stream, const NeftuneNoise& noise) {
  const Scratch scratch = first_tokens(scratch_, config_, stream.tokens);
  const LayerContext layers = context(recorder, stream);
  embed(recorder, stream);
  Tensor x = residual_[0].rows(0, stream.tokens);
  if (noise.alpha > 0) {
    record(recorder, Neftune{.x = x, .segment_begin = stream.segment_begin, .segment_end = stream.segment_end,
                             .alpha = noise.alpha, .seed = noise.seed});
  }
  for (std::uint32_t layer = 0; layer < config_.num_layers; ++layer) {
    const Tensor next = residual_[(layer + 1) % residual_.size()].rows(0, stream.tokens);
    LayerActivations activations = activations_of(layer, stream.tokens);
    layer_forward(layers, layer, x, activations, scratch, next);
    x = next;
  }
  return x;
}

Head::Loss Model::loss(gpu::Recorder& recorder, const DeviceStream& stream) {
  return head_.forward(recorder, stream, forward(recorder, stream));
}

Head::Loss Model::base_loss(gpu::Recorder& recorder, const DeviceStream& stream) {
  const bool used = linear_.lora != nullptr;
  use_adapter(false);
  const Head::Loss loss = head_.forward(recorder, stream, forward(recorder, stream));
  use_adapter(used);
  return loss;
}

Head::Loss Model::loss_and_gradients(gpu::Recorder& recorder, const DeviceStream& stream, const LossOptions& loss_options,
                                     const TrainingNoise& noise, const Tensor& d_head) {
  check(options_.trainable, "model", "The model was made without room for gradients.");
  linear_.dropout = noise.dropout;
  const Tensor last = run_layers(recorder, stream, noise.neftune);
  const Tensor dx = dx_.rows(0, stream.tokens);
  const Head::Loss loss = head_.forward_backward(recorder, stream, last, loss_options, dx, d_head);
  const Scratch scratch = first_tokens(scratch_, config_, stream.tokens);
  const LayerContext layers = context(recorder, stream);
  for (std::uint32_t layer = config_.num_layers; layer-- > 0;) {
    const Tensor input = residual_[layer].rows(0, stream.tokens);
    LayerActivations activations = activations_of(layer, stream.tokens);
    const bool kept = !options_.gradient_checkpointing || layer + 1 == config_.num_layers;
    if (!kept) layer_forward(layers, layer, input, activations, scratch, residual_[layer + 1].rows(0, stream.tokens));
    layer_backward(layers, layer, input, activations, scratch, dx, layer > 0);
  }
  linear_.dropout = {};
  return loss;
}

void Model::forward_layer(gpu::Recorder& recorder, const DeviceStream& stream, std::uint32_t layer, const Tensor& input,
                          const Tensor& output) {
  LayerActivations activations = activations_of(layer, stream.tokens);
  layer_forward(context(recorder, stream), layer, input, activations, first_tokens(scratch_, config_, stream.tokens), output);
}

void Model::backward_layer(gpu::Recorder& recorder, const DeviceStream& stream, std::uint32_t layer, const Tensor& input,
                           const Tensor& dx) {
  layer_backward(context(recorder, stream), layer, input, activations_of(layer, stream.tokens),
                 first_tokens(scratch_, config_, stream.tokens), dx, true);
}

void Model::forward_mlp(gpu::Recorder& recorder, const DeviceStream& stream, std::uint32_t layer, const Tensor& input,
                        const Tensor& output) {
  LayerActivations activations = activations_of(layer, stream.tokens);
  recorder.copy(input, activations.middle);
  mlp_forward(context(recorder, stream), layer, activations, output);
}

void Model::backward_mlp(gpu::Recorder& recorder, const DeviceStream& stream, std::uint32_t layer, const Tensor& dx) {
  mlp_backward(context(recorder, stream), layer, activations_of(layer, stream.tokens),
               first_tokens(scratch_, config_, stream.tokens), dx);
}

std::optional<Model::NonFinitePlace> Model::find_nonfinite(const DeviceStream& stream) {
  const Tensor found = device_.tensor(DType::u32, {1}, "first non-finite");
  const Scratch scratch = first_tokens(scratch_, config_, stream.tokens);
  gpu::Recorder recorder(device_);
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
  for (std::uint32_t layer = 0; layer < config_.num_layers; ++layer) {
    const Tensor next = residual_[(layer + 1) % residual_.size()].rows(0, stream.tokens);
    LayerActivations activations = activations_of(layer, stream.tokens);
    layer_forward(context(recorder, stream), layer, x, activations, scratch, next);
    if (auto place = look(activations.middle, fmt::format("the attention of layer {}", layer))) return place;
    if (auto place = look(next, fmt::format("the MLP of layer {}", layer))) return place;
    x = next;
  }
  return {};
}

}  // namespace nibble
