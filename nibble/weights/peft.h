#pragma once

#include <array>
#include <optional>
#include <span>
#include <vector>

#include "nibble/io/file.h"
#include "nibble/io/safetensors.h"
#include "nibble/text/tokenizer_files.h"
#include "nibble/weights/config.h"
#include "nibble/weights/matrix_source.h"

// LoRA adapters as PEFT stores them: a folder with adapter_config.json and adapter_model.safetensors. Those of mlx_lm are read too
// (mlx_adapter.h).
namespace nibble {

enum class LoraMatrix : std::uint8_t { a, b, magnitude };  // the last one of DoRA alone

// "base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight"; of magnitudes "....q_proj.lora_magnitude_vector"
std::string peft_tensor_name(std::uint32_t layer, Projection projection, LoraMatrix matrix);
// The same of a module by its name.
std::string peft_tensor_name(std::string_view module, LoraMatrix matrix);

// Of a head that was trained with the adapter (modules_to_save).
inline constexpr std::string_view peft_head_tensor_name = "base_model.model.lm_head.weight";
// Of rows of the embedding and of an untied head that were trained with it (trainable_token_indices), in the order of their tokens.
inline constexpr std::string_view peft_token_rows_name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta";
inline constexpr std::string_view peft_head_rows_name = "base_model.model.lm_head.token_adapter.trainable_tokens_delta";

// What an adapter is to one projection of one layer.
struct LoraModule {
  std::uint32_t rank = 0;  // 0: not adapted
  double scaling = 0;      // what B A x is multiplied by

  bool used() const { return rank > 0; }
};
using LoraModules = std::vector<std::array<LoraModule, 7>>;  // by layer and Projection

// What adapter_config.json says of an adapter. A pattern holds for modules whose name ends with what its key, a regular expression,
// matches whole: at the beginning of the name or behind a dot. The first that matches counts.
struct LoraConfig {
  template <typename Value>
  using Pattern = std::vector<std::pair<std::string, Value>>;

  std::string base_model_name_or_path;
  std::uint32_t rank = 16;
  double lora_alpha = 32;
  double lora_dropout = 0;
  bool use_rslora = false;
  bool use_dora = false;
  bool saves_head = false;  // modules_to_save is ["lm_head"]: the adapter brings a head of its own
  // trainable_token_indices: tokens whose rows of the embedding, which a tied head has too, and of an untied head are the adapter's own.
  std::vector<std::uint32_t> trained_tokens = {}, trained_head_tokens = {};
  std::vector<Projection> target_modules{all_projections.begin(), all_projections.end()};
  std::string target_pattern = {};  // a regular expression that has to match the whole name of a module; with it, target_modules are all
  std::vector<std::string> exclude_modules = {};  // names, or ends of names from behind a dot
  std::string exclude_pattern = {};               // in their place, as target_pattern
  Pattern<std::uint32_t> rank_pattern = {};             // in place of `rank`
  Pattern<double> alpha_pattern = {};                   // in place of `lora_alpha`
  std::vector<std::uint32_t> layers_to_transform = {};  // rising; empty: all

  bool targets(Projection projection) const;
  // Without patterns: lora_alpha / rank, or lora_alpha / sqrt(rank) for rsLoRA.
  double scaling() const;
  // Whether rank and alpha are the same everywhere.
  bool is_uniform() const { return rank_pattern.empty() && alpha_pattern.empty(); }
  bool trains_tokens() const { return !trained_tokens.empty() || !trained_head_tokens.empty(); }
  // Whether every layer has the target_modules.
  bool is_of_all_layers() const {
    return layers_to_transform.empty() && target_pattern.empty() && exclude_pattern.empty() && exclude_modules.empty();
  }
};

// Of a model with so many layers. DataError where a pattern is no regular expression or leaves no projection, or a layer is named that
// the model has not.
LoraModules modules_of(const LoraConfig& config, std::uint32_t num_layers);
// UsageError where rank_pattern or alpha_pattern, as a user gives them, have a key that fits no module; PEFT passes over such keys.
void check_patterns(const LoraConfig& config, std::uint32_t num_layers);
std::uint32_t largest_rank(const LoraModules& modules);
// What is adapted where nothing is said: all projections, but of mixtures of experts those of attention alone.
std::vector<Projection> usual_targets(const ModelConfig& model);
// Whether projections of experts are adapted, of a model that has experts.
bool adapts_experts(const ModelConfig& model, const LoraConfig& config);
// "8", or "8 to 32" of modules that differ.
std::string ranks_text(const LoraConfig& config);

// y += scaling * B (A x), of the module's own rank; those of experts one below the other. With DoRA each row of W + scaling * B A is
// brought to the length that its magnitude says.
struct LoraMatrices {
  std::vector<float> a;          // (rank, in)
  std::vector<float> b;          // (out, rank)
  std::vector<float> magnitude;  // (out); empty without DoRA

  bool used() const { return !a.empty(); }
  std::vector<float>& matrix(LoraMatrix which) { return which == LoraMatrix::a ? a : which == LoraMatrix::b ? b : magnitude; }
  const std::vector<float>& matrix(LoraMatrix which) const { return const_cast<LoraMatrices*>(this)->matrix(which); }
};

// Those that an adapter of this kind has, in the order in which they lie one after the other on the device.
std::span<const LoraMatrix> lora_matrices(bool use_dora);

// An adapter on the host, in f32.
struct LoraAdapter {
  LoraConfig config;
  std::vector<std::array<LoraMatrices, 7>> layers;  // by Projection; those that are not targets are empty
  std::optional<MatrixSource> head;                 // (vocab, hidden), in place of the base's; only where config.saves_head
  std::vector<float> token_rows = {}, head_rows = {};  // (tokens, hidden) of config.trained_tokens and trained_head_tokens
  text::TokenizerFiles tokenizer = {};              // that belongs to the adapter; empty: the model's holds
  std::uint32_t experts = 0;                        // of a layer of the model

  LoraMatrices& at(std::uint32_t layer, Projection p) { return layers[layer][static_cast<std::size_t>(p)]; }
  const LoraMatrices& at(std::uint32_t layer, Projection p) const { return layers[layer][static_cast<std::size_t>(p)]; }
  std::uint64_t parameter_count() const;  // of the matrices and rows of tokens, without the head
  bool has_magnitudes() const;            // any that is not 0
  LoraModules modules() const { return modules_of(config, static_cast<std::uint32_t>(layers.size())); }
  // One of `count` matrices that lie one below the other.
  static std::span<const float> part_of(const std::vector<float>& matrix, std::uint32_t index, std::uint32_t count) {
    return std::span(matrix).subspan(matrix.size() / count * index, matrix.size() / count);
  }
};

// A matrix or vector of an adapter in a file, checked: F32, F16 or BF16, of this shape, finite. DataError names file and tensor.
const TensorInfo& adapter_tensor(const SafetensorsFile& file, std::string_view name, const Shape& shape);
std::vector<float> read_adapter_tensor(const SafetensorsFile& file, std::string_view name, const Shape& shape);

// (rank, in) or (out, rank), of one expert where the projection is of experts; magnitudes, which are a vector, count as (out, 1).
ProjectionDims lora_dims(const ModelConfig& model, std::uint32_t rank, Projection projection, LoraMatrix matrix);

// An adapter of zeros. Magnitudes of DoRA that are all 0 stand for the norms of the base's rows, which ModelState::set_lora finds.
LoraAdapter make_lora_adapter(const ModelConfig& model, LoraConfig config);

// Reads adapter_config.json of any PEFT since 0.10, or of mlx_lm; keys that do not change the result are passed over. DataError names
// what is not supported: biases, saved modules but for lm_head, other tuners.
LoraConfig read_lora_config(const fs::path& folder);

// Reads the whole adapter, of PEFT or mlx_lm, from F32, F16 or BF16. DataError names file and tensor where one is missing, unknown, of
// another shape than model and rank make it, or not finite. A head stays in its file, which the adapter keeps open.
LoraAdapter load_lora_adapter(const fs::path& folder, const ModelConfig& model);

// Writes adapter_model.safetensors (with the head where there is one), adapter_config.json, README.md and the adapter's own tokenizer into `folder`, which
// is created where it is missing. A README.md that somebody else wrote stays. Each file appears whole; for all at once, write into an AtomicFolder.
void save_lora_adapter(const fs::path& folder, const LoraAdapter& adapter);
// Whether this is a README.md that save_lora_adapter wrote.
bool is_adapter_card(const fs::path& path);

}  // namespace nibble
