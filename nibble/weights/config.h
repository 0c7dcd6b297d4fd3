#pragma once

#include <optional>
#include <span>
#include <vector>

#include "nibble/io/json.h"
#include "nibble/weights/family.h"
#include "nibble/weights/names.h"
#include "nibble/weights/quantization_config.h"

namespace nibble {

// How the model's makers want it sampled (generation_config.json); empty where they do not say.
struct GenerationDefaults {
  std::optional<float> temperature;
  std::optional<std::uint32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  bool do_sample = false;
};

// How positions become angles (transformers' modeling_rope_utils.py has the formulas): frequencies theta^(-2i/D), and what
// stretches them for texts longer than those of pre-training.
struct RopeConfig {
  enum class Kind { standard, linear, llama3, yarn };
  Kind kind = Kind::standard;
  float theta = 10000;
  double factor = 1;
  double original_positions = 0;                    // llama3, yarn: the longest text of pre-training
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  double beta_fast = 32, beta_slow = 1;             // yarn
  double attention_factor = 1;                      // yarn: of cosines and sines
  bool truncate = true;                             // yarn: whole dimensions
};

// A mixture of experts in the place of each layer's MLP.
struct ExpertConfig {
  std::uint32_t count = 0;              // 0: the model has none
  std::uint32_t per_token = 0;          // that the router chooses for each
  std::uint32_t intermediate_size = 0;  // of one
  bool normalised = false;              // the weights of those chosen are divided by their sum
};

// A decoder as config.json describes it, checked: every size is positive and within reason, heads divide evenly.
struct ModelConfig {
  std::string model_type;
  Family family = families[0];
  std::uint32_t hidden_size = 0;
  std::uint32_t num_layers = 0;
  std::uint32_t vocab_size = 0;
  std::uint32_t num_heads = 0;
  std::uint32_t num_kv_heads = 0;
  std::uint32_t head_dim = 0;
  std::uint32_t intermediate_size = 0;
  std::uint32_t max_position_embeddings = 0;
  float rms_norm_eps = 0;
  RopeConfig rope;
  std::vector<bool> nope;                    // by layer: queries and keys are not rotated; empty: none is so
  std::uint32_t sliding_window = 0;          // keys that a query meets at most, its own included; 0: all before it
  bool tie_word_embeddings = false;          // the head is the embedding
  std::vector<std::uint32_t> eos_token_ids;  // of generation_config.json where it has some
  GenerationDefaults generation;
  std::optional<Fp8Blocks> fp8;              // of weights that are stored in eight bits, with scales
  ExpertConfig experts;

  bool has_experts() const { return experts.count > 0; }
  bool rotates(std::uint32_t layer) const { return nope.empty() || !nope[layer]; }
};

// Reads config.json, as transformers 4 or 5 writes it, and generation_config.json where there is one, or what a GGUF file says in
// their place. DataError names the key, what it holds and what is supported.
// With `defaults`, keys that config.json lacks are taken from there, and the log names them.
ModelConfig read_model_config(const fs::path& model, const Json& defaults = Json::object());
// The same from parsed files; `generation` may be null. The origins name them in errors.
ModelConfig parse_model_config(const JsonObject& config, const JsonObject* generation = nullptr);

// y (out) = W (out, in) x (in)
struct ProjectionDims {
  std::uint32_t out = 0;
  std::uint32_t in = 0;
};
// Of one expert, where the projection is of experts.
ProjectionDims projection_dims(const ModelConfig& config, Projection projection);
// Matrices that the projection has in a layer, where they lie one below the other.
inline std::uint32_t matrices_of(const ModelConfig& config, Projection projection) { return matrices_of(config.experts.count, projection); }
// The projections that have one matrix a layer.
std::span<const Projection> single_projections(const ModelConfig& config);
// y = W x + b
bool has_bias(const ModelConfig& config, Projection projection);

}  // namespace nibble
