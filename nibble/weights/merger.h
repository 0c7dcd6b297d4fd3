#pragma once

#include <deque>
#include <map>
#include <vector>

#include "nibble/weights/checkpoint_check.h"
#include "nibble/weights/merge.h"

namespace nibble {

// A model with its adapters, tensor by tensor: what is to be known about each is collected, and the files are compared, before the
// first byte is made.
class Merger {
 public:
  // The options must outlive it. Errors as of merge().
  explicit Merger(const MergeOptions& options);

  const ModelConfig& config() const { return config_; }
  // Everything that is written, in the types that options.dtype or the model give them.
  const std::vector<TensorSpec>& tensors() const { return tensors_; }
  // The bytes of a tensor in the type that `tensor` says, in order and whole rows at a time but for the head.
  MergeNorms make(const TensorSpec& tensor, const TakeBytes& take) const;
  // Of a tensor that is not a trained head.
  MergeMatrix matrix_of(const TensorSpec& tensor) const;
  // Null unless an adapter brings one.
  const MatrixSource* head() const;
  // Whether an adapter brings rows of tokens, which then take the place of the base's.
  bool has_token_rows() const { return adapters_.size() == 1 && adapters_.front().config.trains_tokens(); }
  // Whether the result has a head of its own, and whether it has one where the model has none.
  bool has_head() const { return head() || !config_.tie_word_embeddings; }
  bool unties_head() const { return head() && config_.tie_word_embeddings; }
  // "BF16", or what else the file has.
  const std::string& stored_type(std::string_view name) const { return base_.at(name).tensor->dtype_name; }
  // Whether any projection is stored in 4 bits already.
  bool is_quantised() const { return !quantised_.empty(); }

 private:
  void load_adapters();
  void check_alone(const LoraAdapter& adapter, const MergeAdapter& given) const;
  // A table with the adapter's rows in the place of its own.
  MergeNorms merge_rows(const TensorSpec& tensor, const std::vector<std::uint32_t>& ids, const std::vector<float>& rows, const TakeBytes& take) const;
  void add_terms(const LoraAdapter& adapter, std::uint32_t layer, Projection p, double scaling);

  const MergeOptions& options_;
  ModelConfig config_;
  Checkpoint base_;
  std::vector<LoraAdapter> adapters_;
  std::deque<LoraMatrices> of_experts_;  // theirs by themselves
  std::map<std::string, std::vector<MergeTerm>, std::less<>> terms_;  // by tensor
  std::vector<TensorSpec> tensors_;
  std::map<std::string, BnbMatrix, std::less<>> quantised_;  // by tensor
};

// Where the tokenizer of what is written lies: with a single adapter, in its folder if that has one.
fs::path tokenizer_of(const MergeOptions& options);

// Writes the model as one GGUF file.
void write_merged_gguf(const MergeOptions& options, const Merger& merger, MergeResult& result);

}  // namespace nibble
