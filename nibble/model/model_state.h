#pragma once

#include "nibble/io/checkpoint.h"
#include "nibble/kernels/product.h"
#include "nibble/model/lora_mirror.h"
#include "nibble/model/trained_head.h"
#include "nibble/model/trained_tokens.h"
#include "nibble/weights/device_weights.h"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

namespace nibble {

// A frozen projection (out_dim, in_dim) on the host, in NF4 as bitsandbytes stores it: two codes a byte, the first in the high
// half, and the largest magnitude of each block of 64.
struct Nf4Projection {
  std::uint32_t out_dim = 0, in_dim = 0;
  std::vector<std::uint8_t> packed;
  std::vector<float> absmax;
  CodeBook codes = CodeBook::nf4;

  std::uint64_t count() const { return std::uint64_t{out_dim} * in_dim; }
  // Bytes of codes and scales, by the shape.
  std::uint64_t memory_bytes() const;
};

struct Nf4Layer : PerProjection<Nf4Projection> {
  std::uint64_t memory_bytes() const;
};

// De-quantised weights of a layer on the device, f32, transposed: (in, out).
struct FfnCache {
  gpu::Tensor gate, up;  // (hidden, intermediate)
  gpu::Tensor down;      // (intermediate, hidden)
};
struct AttnCache {
  gpu::Tensor q;     // (hidden, heads * head_dim)
  gpu::Tensor k, v;  // (hidden, kv_heads * head_dim)
  gpu::Tensor o;     // (heads * head_dim, hidden)
};

struct StateOptions {
  std::optional<ProductPath> path = {};        // decides how embedding and head are stored; empty: fastest_path()
  std::optional<LoraConfig> lora = {};         // of a new adapter (A uniform, B zero)
  std::filesystem::path adapter = {};          // or: a PEFT folder to begin with; neither: the base alone
  bool trainable = true;                       // room for gradients and moments of the adapters
  MomentsOptions moments = {};                 // of such an adapter, and of one that takes its place
  std::uint64_t seed = 42;                     // of a new adapter
  bool rows_change = false;                    // room in the tables for an adapter that has rows of tokens and comes by set_lora
  bool base_head = true;                       // false leaves the head out where train_head is to follow
  std::vector<Residency> residency = {};       // by layer; which are streamed is settled here, which are cached by each model
  StreamOptions stream = {};
  std::function<void(double)> progress = {};   // hears the part of the weights that is on the device
};

// The complete state of a QLoRA fine-tune: the frozen model in 4 bits, the adapters with their optimiser moments, and how many
// updates were done. Training, evaluation and generation all work on one of these.
//
// Who owns what. The device holds every value from the start (of layers that are streamed its host memory does), and kernels work there. The host has a mirror of each part, made
// when it is first asked for. Of a part that nothing changes (`layers`, the frozen `lm_head`) both copies stay equal. Of the
// adapters, the side that wrote last is the valid one: a training step makes it the device, `edit_lora` the host; whoever asks
// for a part on the other side gets it brought over first. So neither side is ever read when it is out of date, and nothing is
// copied without need.
//
// Not copied, but moved; models made of it refer to its tensors, which a move leaves where they are. One thread at a time.
class ModelState {
 public:
  // A model folder as Hugging Face lays it out: config.json, and safetensors in one file or in shards (F32, F16, BF16; a layer
  // may lie in several). DataError names file, tensor, expected and found shape.
  static ModelState load(gpu::Device& device, const std::filesystem::path& model_dir, const StateOptions& options = {});
  // The same with a new adapter of all projections; what config.json lacks is taken from Qwen3-4B, and the log says so.
  static ModelState load_qwen3_4b(gpu::Device& device, const std::filesystem::path& model_dir, std::uint32_t lora_rank,
                                  double lora_alpha);
  // Random weights of these sizes, to measure without files.
  static ModelState made_up(gpu::Device& device, const ModelConfig& config, const StateOptions& options = {});

  gpu::Device& device() const { return *device_; }
  const ModelConfig& config() const { return config_; }
  ProductPath path() const { return path_; }
  std::uint32_t hidden_size() const { return config_.hidden_size; }
  std::uint32_t num_layers() const { return config_.num_layers; }
  std::uint32_t vocab_size() const { return config_.vocab_size; }
  std::uint32_t num_heads() const { return config_.num_heads; }
  std::uint32_t num_kv_heads() const { return config_.num_kv_heads; }
  std::uint32_t head_dim() const { return config_.head_dim; }
  std::uint32_t intermediate_size() const { return config_.intermediate_size; }

  // Updates of the optimiser that were done.
  std::uint64_t step = 0;

  // The frozen projections of each layer.
  const std::vector<Nf4Layer>& layers() const;
  // Bytes of all layers' frozen projections.
  std::uint64_t memory_bytes() const;

  bool has_lora() const { return lora_ != nullptr; }
  // Both copies of the adapters. This and the next four throw UsageError where there is no adapter.
  LoraMirror& lora_mirror() const;
  // The adapters of each layer with their moments; of a state that is not trainable the moments are empty.
  const std::vector<LoraLayer>& lora() const { return lora_mirror().on_host(); }
  // The same to write to; sizes must stay. Holds until the device next needs the adapters.
  std::vector<LoraLayer>& edit_lora() { return lora_mirror().edit(); }
  const LoraConfig& lora_config() const { return lora_mirror().config(); }
  // As PEFT stores it.
  LoraAdapter lora_adapter() const;
  // Replaces the adapter with its rows of tokens and, where it brings one, the head; moments begin at zero. A head that is trained
  // stays where the adapter brings none. Models made before must not be used any more.
  void set_lora(const LoraAdapter& adapter, bool trainable);

  // The head (vocab, hidden), row-major, without an adapter's rows of tokens; of a model that ties it also the embedding, until the head is
  // trained.
  const std::vector<float>& lm_head() const;
  // Its moments, as they are now; empty until the head is trained.
  std::vector<float> lm_head_m() const;
  std::vector<float> lm_head_v() const;
  // Trains the head from now on, beginning with that of the adapter or of the model; a tied one is untied, and the embedding
  // stays. The state's path counts, not that of the options. Models made before must not be used any more.
  void train_head(TrainedHeadOptions options);
  // Null until the head is trained.
  TrainedHead* trained_head() const { return trained_head_.get(); }

  // The adapter's own rows of embedding and head; null where it has none. They are in the tables that `weights()` has from a pass
  // with the adapter to the next one without it.
  TrainedTokens* trained_tokens() const { return trained_tokens_.get(); }

  // Numbers that training changes.
  std::uint64_t trainable_params() const;

  // Writes dir/lora-checkpoint-step{at_step}.json (nibble/weights/json_checkpoint.h) with the adapters, their moments and
  // `loss`, and returns its path. A value that is not finite is refused by name. A head that is trained is written beside it,
  // with its moments, as dir/lora-checkpoint-step{at_step}.lm_head.safetensors.
  std::filesystem::path save_checkpoint(const std::filesystem::path& dir, std::uint64_t at_step, double loss) const;
  // Where a checkpoint was made.
  struct Position {
    std::uint64_t step = 0;
    double loss = 0;
  };
  // Takes adapters, moments and step from such a file, and the head from the one beside it. DataError names a layer count,
  // hidden size, rank, alpha or shape that is not the state's, and what is missing or no number; nothing has changed then.
  Position load_checkpoint(const std::filesystem::path& path);

  // Which layers are streamed; the others count as resident.
  const std::vector<Residency>& residency() const { return residency_; }

  // The frozen weights as kernels read them.
  const DeviceWeights& weights() const { return *weights_; }

  // Fills both caches by de-quantising on the device and transposing there; f32 products then read them. A second call does
  // nothing. Throws OutOfDeviceMemory with the bytes needed where they are more than `limit`, or than the adapter says to have
  // free where there is no limit; nothing is kept then.
  void populate_weight_cache(std::optional<std::uint64_t> limit = {});
  // Of a layer; empty until they were asked for.
  std::optional<FfnCache> ffn_cache(std::uint32_t layer) const;
  std::optional<AttnCache> attn_cache(std::uint32_t layer) const;

 private:
  ModelState(gpu::Device& device, ModelConfig config, ProductPath path, const MomentsOptions& moments);
  static ModelState load(gpu::Device& device, const std::filesystem::path& model_dir, const ModelConfig& config,
                         const StateOptions& options);
  const std::vector<Residency>& settle(const StateOptions& options);
  void begin_lora(const StateOptions& options);
  void set_token_rows(const LoraAdapter& adapter, bool trainable);
  MatrixSource first_head() const;  // of the adapter or the model
  static std::filesystem::path head_file_of(const std::filesystem::path& checkpoint);
  void save_head(const std::filesystem::path& path) const;
  void load_head(const std::filesystem::path& path);

  gpu::Device* device_;
  ModelConfig config_;
  ProductPath path_;
  MomentsOptions moments_;  // of adapters
  std::vector<Residency> residency_;
  std::unique_ptr<Checkpoint> files_;  // null of made-up weights
  std::unique_ptr<DeviceWeights> weights_;
  std::unique_ptr<LoraMirror> lora_;
  std::optional<MatrixSource> adapter_head_;  // that the adapter brought
  std::unique_ptr<TrainedHead> trained_head_;
  std::unique_ptr<TrainedTokens> trained_tokens_;
  bool rows_change_ = false;  // whether the tables have room
  mutable std::vector<Nf4Layer> host_layers_;
  mutable std::vector<float> host_head_;
  mutable std::uint64_t host_head_version_ = 0;  // of the trained head, when it was read
};

// The same sums by shapes alone.
std::uint64_t trainable_params(const ModelConfig& config, const LoraConfig& lora);
// The shapes of a model's frozen projections, without values.
std::vector<Nf4Layer> frozen_shapes(const ModelConfig& config);

}  // namespace nibble
