#pragma once

#include <map>

#include "nibble/weights/merge.h"

// Private to weights: a model with an adapter, tensor by tensor.
namespace nibble {

// What is to be known about each tensor is collected, and the files are compared, before the first byte is made.
class MergedTensors {
 public:
  // `options` must outlive it.
  explicit MergedTensors(const MergeOptions& options);

  const ModelConfig& config() const { return config_; }
  // In the types that options.dtype or the model give them.
  const std::vector<TensorSpec>& tensors() const { return tensors_; }
  // Whether the result has a head of its own.
  bool unties_head() const { return trains_head() && config_.tie_word_embeddings; }
  bool has_head() const { return trains_head() || !config_.tie_word_embeddings; }
  // "BF16", or what else the file has.
  const std::string& stored_type(std::string_view name) const { return base_.at(name).tensor->dtype_name; }

  // The bytes of a tensor in the type that `tensor` says, in order and whole rows at a time but for the head.
  MergeNorms make(const TensorSpec& tensor, const TakeBytes& take) const;

 private:
  bool trains_head() const { return adapter_ && adapter_->head; }
  MergeMatrix matrix_of(const TensorSpec& tensor) const;

  const MergeOptions& options_;
  ModelConfig config_;
  Checkpoint base_;
  std::optional<LoraAdapter> adapter_;
  std::vector<TensorSpec> tensors_;
  std::map<std::string, BnbMatrix, std::less<>> quantised_;              // by tensor
  std::map<std::string, const LoraMatrices*, std::less<>> projections_;  // by tensor; null where not adapted
};

// Writes the model that `tensors` make as one GGUF file.
void write_merged_gguf(const MergeOptions& options, const MergedTensors& tensors, MergeResult& result);

// DataError where the disk at `place` has no room for so many bytes.
void check_room(const fs::path& place, std::uint64_t bytes);

}  // namespace nibble
