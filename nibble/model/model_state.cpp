#include "nibble/model/model_state.h"

#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/quant/nf4.h"
#include "nibble/weights/gguf_model.h"
#include "nibble/weights/scale_room.h"
#include "nibble/weights/shapes.h"

namespace nibble {
namespace {

// config.json with what it lacks of the sizes taken from Qwen3-4B.
ModelConfig config_with_4b_defaults(const std::filesystem::path& model_dir) {
  const ModelConfig c = shape_by_name("qwen3-4b");
  const Json defaults = {{"model_type", c.model_type},
                         {"hidden_size", c.hidden_size},
                         {"num_hidden_layers", c.num_layers},
                         {"vocab_size", c.vocab_size},
                         {"num_attention_heads", c.num_heads},
                         {"num_key_value_heads", c.num_kv_heads},
                         {"head_dim", c.head_dim},
                         {"intermediate_size", c.intermediate_size},
                         {"max_position_embeddings", c.max_position_embeddings},
                         {"rms_norm_eps", 1e-6},
                         {"tie_word_embeddings", c.tie_word_embeddings}};
  return read_model_config(model_dir, defaults);
}

std::uint64_t all_bytes(const std::vector<Nf4Layer>& layers) {
  std::uint64_t bytes = 0;
  for (const Nf4Layer& layer : layers) bytes += layer.memory_bytes();
  return bytes;
}

}  // namespace

std::uint64_t Nf4Projection::memory_bytes() const {
  return nf4_packed_bytes(count()) + nf4_blocks(count()) * sizeof(float);
}

std::uint64_t Nf4Layer::memory_bytes() const {
  std::uint64_t bytes = 0;
  for (const Projection p : all_projections) bytes += at(p).memory_bytes();
  return bytes;
}

std::vector<Nf4Layer> frozen_shapes(const ModelConfig& config) {
  std::vector<Nf4Layer> layers(config.num_layers);
  for (Nf4Layer& layer : layers) {
    for (const Projection p : all_projections) {
      const auto [out, in] = projection_dims(config, p);
      layer.at(p) = {.out_dim = matrices_of(config, p) * out, .in_dim = in, .packed = {}, .absmax = {}, .codes = CodeBook::nf4};
    }
  }
  return layers;
}

std::uint64_t trainable_params(const ModelConfig& config, const LoraConfig& lora) {
  std::uint64_t count = 0;
  for (const auto& layer : modules_of(lora, config.num_layers)) {
    for (const Projection p : all_projections) {
      const auto [out, in] = projection_dims(config, p);
      const std::uint32_t rank = layer[static_cast<std::size_t>(p)].rank;
      count += matrices_of(config, p) * rank * (std::uint64_t{out} + in) + (lora.use_dora && rank > 0 ? out : 0);
    }
  }
  count += std::uint64_t{lora.trained_tokens.size() + lora.trained_head_tokens.size()} * config.hidden_size;
  return count + (lora.saves_head ? std::uint64_t{config.vocab_size} * config.hidden_size : 0);
}

ModelState::ModelState(gpu::Device& device, ModelConfig config, ProductPath path, const MomentsOptions& moments)
    : device_(&device), config_(std::move(config)), path_(path), moments_(moments) {}

ModelState ModelState::load(gpu::Device& device, const std::filesystem::path& model_dir, const StateOptions& options) {
  return load(device, model_dir, read_model_config(model_dir), options);
}

ModelState ModelState::load_qwen3_4b(gpu::Device& device, const std::filesystem::path& model_dir, std::uint32_t lora_rank,
                                     double lora_alpha) {
  return load(device, model_dir, config_with_4b_defaults(model_dir),
              {.lora = LoraConfig{.base_model_name_or_path = model_dir.string(), .rank = lora_rank, .lora_alpha = lora_alpha}});
}

ModelState ModelState::load(gpu::Device& device, const std::filesystem::path& model_dir, const ModelConfig& config,
                            const StateOptions& options) {
  ModelState state(device, config, options.path.value_or(fastest_path(device.info())), options.moments);
  std::optional<LoraAdapter> adapter;
  if (!options.adapter.empty()) adapter = load_lora_adapter(options.adapter, config);  // before the long part
  state.files_ = std::make_unique<Checkpoint>(open_checkpoint(model_dir, config));
  state.rows_change_ = options.rows_change || (adapter && adapter->config.trains_tokens());
  if (state.rows_change_) check_rows_change(options.stream);
  state.weights_ = std::make_unique<DeviceWeights>(load_weights(
      device, *state.files_, config,
      {.dense_dtype = operand_dtype(state.path_), .rows_change = state.rows_change_, .head = options.base_head, .residency = state.settle(options), .stream = options.stream,
       .progress = options.progress}));
  if (adapter) {
    state.set_lora(*adapter, options.trainable);
  } else {
    state.begin_lora(options);
  }
  return state;
}

ModelState ModelState::made_up(gpu::Device& device, const ModelConfig& config, const StateOptions& options) {
  ModelState state(device, config, options.path.value_or(fastest_path(device.info())), options.moments);
  state.weights_ = std::make_unique<DeviceWeights>(made_up_weights(
      device, config, {.dense_dtype = operand_dtype(state.path_), .residency = state.settle(options), .stream = options.stream}));
  state.begin_lora(options);
  return state;
}

const std::vector<Residency>& ModelState::settle(const StateOptions& options) {
  residency_.assign(config_.num_layers, Residency::resident);
  for (std::uint32_t layer = 0; layer < config_.num_layers; ++layer) {
    if (residency_of(options.residency, layer) == Residency::streamed) residency_[layer] = Residency::streamed;
  }
  return residency_;
}

void ModelState::begin_lora(const StateOptions& options) {
  if (!options.lora) return;
  LoraAdapter adapter = make_lora_adapter(config_, *options.lora);
  initialise_lora(adapter, options.seed);
  set_lora(adapter, options.trainable);
}

const std::vector<Nf4Layer>& ModelState::layers() const {
  if (!host_layers_.empty()) return host_layers_;
  host_layers_ = frozen_shapes(config_);
  for (std::uint32_t i = 0; i < config_.num_layers; ++i) {
    const LayerProjections& stored = weights_->stored(*device_, i);
    for (const Projection p : all_projections) {
      const Nf4Matrix& matrix = stored[static_cast<std::size_t>(p)];
      host_layers_[i].at(p).packed = device_->read<std::uint8_t>(matrix.packed);
      host_layers_[i].at(p).absmax = read_absmax(*device_, matrix);
      host_layers_[i].at(p).codes = matrix.codes;
    }
  }
  return host_layers_;
}

std::uint64_t ModelState::memory_bytes() const { return all_bytes(frozen_shapes(config_)); }

LoraMirror& ModelState::lora_mirror() const {
  check<UsageError>(has_lora(), "model state", "The state has no adapter; load it with one, or give it one by set_lora.");
  return *lora_;
}

void ModelState::set_lora(const LoraAdapter& adapter, bool trainable) {
  lora_ = std::make_unique<LoraMirror>(*device_, config_, adapter, trainable, moments_);
  if (!adapter.has_magnitudes()) lora_->begin_dora(*weights_);
  set_token_rows(adapter, trainable);
  if (trained_head_ && !adapter.head) return;
  adapter_head_ = adapter.head;
  host_head_.clear();
  if (trained_head_) {
    train_head(trained_head_->options());
  } else if (weights_->base_head) {
    weights_->head = weights_->base_head;
    if (adapter.head) weights_->head = upload_table(*device_, *adapter.head, {.dtype = operand_dtype(path_)}, head_tensor_name);
  }
}

void ModelState::set_token_rows(const LoraAdapter& adapter, bool trainable) {
  if (trained_tokens_) {
    gpu::Recorder recorder(*device_);
    trained_tokens_->show(recorder, false);
    recorder.submit();
    trained_tokens_.reset();
  }
  if (!adapter.config.trains_tokens()) return;
  check<UsageError>(!trained_head_, "model state", "Rows of tokens cannot be an adapter's own where the whole head is trained.");
  check<UsageError>(rows_change_ || path_ == ProductPath::f32, "model state",
                    "The tables have no room for rows of tokens that change; load the state with StateOptions::rows_change.");
  trained_tokens_ = std::make_unique<TrainedTokens>(*device_, config_, *weights_, adapter, trainable);
}

LoraAdapter ModelState::lora_adapter() const {
  LoraAdapter adapter = lora_mirror().adapter(config_);
  if (trained_tokens_) trained_tokens_->read_rows(*device_, adapter);
  if (trained_head_) {
    adapter.head = trained_head_->values();
  } else {
    adapter.head = adapter_head_;
  }
  adapter.config.saves_head = adapter.head.has_value();
  return adapter;
}

std::uint64_t ModelState::trainable_params() const {
  if (!has_lora()) return 0;
  LoraConfig lora = lora_config();
  lora.saves_head = trained_head_ != nullptr || adapter_head_.has_value();
  return nibble::trainable_params(config_, lora);
}

}  // namespace nibble
