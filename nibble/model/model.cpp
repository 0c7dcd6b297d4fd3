#include "nibble/model/model.h"

#include "nibble/base/error.h"
#include "nibble/kernels/neftune.h"
#include "nibble/kernels/nonfinite.h"
#include "nibble/weights/nf4_room.h"

#include <algorithm>
#include <utility>

namespace nibble {

LayerInputsOptions layer_inputs_options(const ModelOptions& options) {
  return {.max_tokens = options.max_tokens, .trainable = options.trainable, .offloaded = options.trainable ? options.offloaded_inputs : 0};
}

LayersOptions layers_options(const ModelOptions& options, std::uint32_t rank, bool expert_adapters, bool use_dora) {
  return {.path = options.path, .residency = options.residency, .one_decoded_room = options.one_decoded_room,
          .max_tokens = options.max_tokens, .rank = rank, .use_dora = use_dora, .trainable = options.trainable,
          .activations = options.trainable ? options.activations : ActivationChoices{Activations::recompute},
          .mlp_chunk = options.trainable && options.mlp_chunk < options.max_tokens ? options.mlp_chunk : 0,
          .lora_dropout = options.lora_dropout, .expert_adapters = expert_adapters};
}

HeadOptions head_options(const gpu::AdapterInfo& info, const ModelConfig& config, const ModelOptions& options, bool base_head) {
  const bool has_table = base_head || config.tie_word_embeddings;
  return {.path = options.path, .max_labels = options.max_labels, .chunk_rows = options.head_chunk, .trainable = options.trainable,
          .form = has_table ? options.stream.tables : TableForm::dense,
          .on_host = has_table && table_places(options.stream, config.tie_word_embeddings).head_on_host,
          .carried = options.path == ProductPath::matrix && memory_of(info, options.stream) == gpu::HostMemory::carried,
          .slice_rows = options.head_slice};
}

namespace {

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

}  // namespace

Model::Model(const ModelState& state, const ModelOptions& options)
    : device_(state.device()),
      config_(state.config()),
      weights_(state.weights()),
      options_(of_state(options, state)),
      adapters_(state.has_lora() ? &state.lora_mirror() : nullptr),
      lora_(adapters_ ? adapters_->on_device() : nullptr),
      tokens_(state.trained_tokens()),
      layers_(make_layers(device_, config_, weights_, lora_,
                          layers_options(options_, lora_ ? lora_->rank : 0, lora_ && adapts_experts(config_, state.lora_config()), lora_ && lora_->use_dora))),
      streams_(device_, options.max_tokens, config_.sliding_window),
      head_(device_, config_, weights_, head_options(device_.info(), config_, options_, static_cast<bool>(weights_.base_head))),
      inputs_(device_, config_, layer_inputs_options(options_)) {
  if (options.trainable) dx_ = device_.tensor(DType::f32, {options.max_tokens, config_.hidden_size}, "residual gradient");
  const std::uint32_t positions = std::min(options.max_tokens, config_.max_position_embeddings);
  rotations_ = Rotations(device_, config_, positions, options.max_tokens);
}

void Model::use_adapter(bool use) {
  head_.use_base(!use);
  lora_ = use && adapters_ ? adapters_->on_device() : nullptr;
}

LayerPass Model::pass(gpu::Recorder& recorder, const DeviceStream& stream, const LoraDropout& dropout) {
  if (adapters_) adapters_->on_device();
  return {.recorder = recorder, .stream = stream, .rotations = rotations_, .lora = lora_, .dora = lora_ ? adapters_->dora() : nullptr, .dropout = dropout};
}

void Model::embed(gpu::Recorder& recorder, const DeviceStream& stream) {
  if (tokens_) tokens_->show(recorder, lora_ != nullptr);
  nibble::embed(recorder, weights_.embedding, stream.token_ids, inputs_.at(0, stream.tokens));
}

Tensor Model::run_layers(const LayerPass& pass, const NeftuneNoise& noise, LayerOrder order) {
  const DeviceStream& stream = pass.stream;
  embed(pass.recorder, stream);
  Tensor x = inputs_.at(0, stream.tokens);
  if (noise.alpha > 0) {
    record(pass.recorder, Neftune{.x = x, .segment_begin = stream.segment_begin, .segment_end = stream.segment_end,
                                  .alpha = noise.alpha, .seed = noise.seed});
  }
  weights_.go(order);
  layers_->begin(pass);
  for (std::uint32_t layer = 0; layer < config_.num_layers; ++layer) {
    const Tensor next = inputs_.at(layer + 1, stream.tokens);
    layers_->forward(pass, layer, x, next);
    if (order == LayerOrder::up) inputs_.put_away(pass.recorder, layer, stream.tokens);
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
  if (tokens_) tokens_->show(recorder, used);
  return loss;
}

Head::Loss Model::loss_and_gradients(gpu::Recorder& recorder, const DeviceStream& stream, const LossOptions& given,
                                     const TrainingNoise& noise, const Tensor& d_head) {
  check(options_.trainable, "model", "The model was made without room for gradients.");
  check(options_.lora_dropout || noise.dropout.probability == 0, "model", "The model was made without dropout.");
  const bool trains_tokens = tokens_ && lora_ && tokens_->trainable();
  LossOptions loss_options = given;
  if (trains_tokens) loss_options.rows = tokens_->head_gradient();
  const LayerPass layers = pass(recorder, stream, noise.dropout);
  const Tensor last = run_layers(layers, noise.neftune, LayerOrder::up);
  const Tensor dx = dx_.rows(0, stream.tokens);
  const Head::Loss loss = head_.forward_backward(recorder, stream, last, loss_options, dx, d_head);
  weights_.go(LayerOrder::down);
  for (std::uint32_t layer = config_.num_layers; layer-- > 0;) {
    const Tensor input = inputs_.at(layer, stream.tokens);
    inputs_.bring_back(recorder, layer, stream.tokens);
    layers_->recompute(layers, layer, input);
    layers_->backward(layers, layer, input, dx, layer > 0 || trains_tokens);
  }
  layers_->end(layers);
  if (trains_tokens) tokens_->add_embedding_gradient(recorder, stream.token_ids, dx);
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
  const LayerPass layers = pass(recorder, stream);
  layers_->backward(layers, layer, input, dx, true);
  layers_->end(layers);
}

void Model::forward_mlp(gpu::Recorder& recorder, const DeviceStream& stream, std::uint32_t layer, const Tensor& input,
                        const Tensor& output) {
  const LayerPass layers = pass(recorder, stream);
  layers_->begin(layers);
  layers_->mlp_forward(layers, layer, input, output);
}

void Model::backward_mlp(gpu::Recorder& recorder, const DeviceStream& stream, std::uint32_t layer, const Tensor& dx) {
  const LayerPass layers = pass(recorder, stream);
  layers_->mlp_backward(layers, layer, dx);
  layers_->end(layers);
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
  Tensor x = inputs_.at(0, stream.tokens);
  if (auto place = look(x, "the embedding")) return place;
  weights_.go(LayerOrder::round);
  layers_->begin(layers);
  for (std::uint32_t layer = 0; layer < config_.num_layers; ++layer) {
    const Tensor next = inputs_.at(layer + 1, stream.tokens);
    layers_->forward(layers, layer, x, next);
    if (auto place = look(layers_->middle(layer, stream.tokens), fmt::format("the attention of layer {}", layer))) return place;
    if (auto place = look(next, fmt::format("the MLP of layer {}", layer))) return place;
    x = next;
  }
  return {};
}

}  // namespace nibble
