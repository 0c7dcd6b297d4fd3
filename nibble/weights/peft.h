#pragma once

#include <array>
#include <optional>
#include <span>
#include <vector>

#include "nibble/io/file.h"
#include "nibble/weights/config.h"
#include "nibble/weights/matrix_source.h"

// LoRA adapters as PEFT stores them: a folder with adapter_config.json and adapter_model.safetensors.
namespace nibble {

enum class LoraMatrix : std::uint8_t { a, b };

// "base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight"
std::string peft_tensor_name(std::uint32_t layer, Projection projection, LoraMatrix matrix);
// The same of a module by its name.
std::string peft_tensor_name(std::string_view module, LoraMatrix matrix);

// Of a head that was trained with the adapter (modules_to_save).
inline constexpr std::string_view peft_head_tensor_name = "base_model.model.lm_head.weight";

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
  bool saves_head = false;  // modules_to_save is ["lm_head"]: the adapter brings a head of its own
  std::vector<Projection> target_modules{all_projections.begin(), all_projections.end()};
  Pattern<std::uint32_t> rank_pattern = {};             // in place of `rank`
  Pattern<double> alpha_pattern = {};                   // in place of `lora_alpha`
  std::vector<std::uint32_t> layers_to_transform = {};  // rising; empty: all

  bool targets(Projection projection) const;
  // Without patterns: lora_alpha / rank, or lora_alpha / sqrt(rank) for rsLoRA.
  double scaling() const;
  // Whether rank and alpha are the same everywhere.
  bool is_uniform() const { return rank_pattern.empty() && alpha_pattern.empty(); }
};

// Of a model with so many layers. DataError where a pattern is no regular expression, or a layer is named that the model has not.
LoraModules modules_of(const LoraConfig& config, std::uint32_t num_layers);
std::uint32_t largest_rank(const LoraModules& modules);
// What is adapted where nothing is said: all projections, but of mixtures of experts those of attention alone.
std::vector<Projection> usual_targets(const ModelConfig& model);
// Whether projections of experts are adapted, of a model that has experts.
bool adapts_experts(const ModelConfig& model, const LoraConfig& config);
// "8", or "8 to 32" of modules that differ.
std::string ranks_text(const LoraConfig& config);

// y += scaling * B (A x), of the module's own rank; those of experts one below the other
struct LoraMatrices {
  std::vector<float> a;  // (rank, in)
  std::vector<float> b;  // (out, rank)

  bool used() const { return !a.empty(); }
  std::vector<float>& matrix(LoraMatrix which) { return which == LoraMatrix::a ? a : b; }
  const std::vector<float>& matrix(LoraMatrix which) const { return which == LoraMatrix::a ? a : b; }
};

// An adapter on the host, in f32.
struct LoraAdapter {
  LoraConfig config;
  std::vector<std::array<LoraMatrices, 7>> layers;  // by Projection; those that are not targets are empty
  std::optional<MatrixSource> head;                 // (vocab, hidden), in place of the base's; only where config.saves_head
  std::uint32_t experts = 0;                        // of a layer of the model

  LoraMatrices& at(std::uint32_t layer, Projection p) { return layers[layer][static_cast<std::size_t>(p)]; }
  const LoraMatrices& at(std::uint32_t layer, Projection p) const { return layers[layer][static_cast<std::size_t>(p)]; }
  std::uint64_t parameter_count() const;  // of the matrices, without the head
  LoraModules modules() const { return modules_of(config, static_cast<std::uint32_t>(layers.size())); }
  // One of `count` matrices that lie one below the other.
  static std::span<const float> part_of(const std::vector<float>& matrix, std::uint32_t index, std::uint32_t count) {
    return std::span(matrix).subspan(matrix.size() / count * index, matrix.size() / count);
  }
};

// (rank, in) or (out, rank), of one expert where the projection is of experts
ProjectionDims lora_dims(const ModelConfig& model, std::uint32_t rank, Projection projection, LoraMatrix matrix);

// An adapter of zeros.
LoraAdapter make_lora_adapter(const ModelConfig& model, LoraConfig config);

// Reads adapter_config.json of any PEFT since 0.10; keys that do not change the result are passed over. DataError names
// what is not supported: DoRA, biases, saved modules but for lm_head, other tuners.
LoraConfig read_lora_config(const fs::path& folder);

// Reads the whole adapter, from F32, F16 or BF16. DataError names file and tensor where one is missing, unknown, of
// another shape than model and rank make it, or not finite. A head stays in its file, which the adapter keeps open.
LoraAdapter load_lora_adapter(const fs::path& folder, const ModelConfig& model);

// Writes adapter_model.safetensors (with the head where there is one), adapter_config.json and README.md into `folder`, which
// is created where it is missing. Each file appears whole; for all three at once, write into an AtomicFolder.
void save_lora_adapter(const fs::path& folder, const LoraAdapter& adapter);

}  // namespace nibble
