#pragma once

#include <map>
#include <vector>

#include "nibble/weights/checkpoint_check.h"
#include "nibble/weights/merge.h"

namespace nibble {

// What is to be known about each tensor of a merge, collected before the first byte is written.
class Merger {
 public:
  // The options must outlive it. Errors as of merge().
  explicit Merger(const MergeOptions& options);

  const ModelConfig& config() const { return config_; }
  // Everything that is written, of its type and shape.
  const std::vector<TensorSpec>& tensors() const { return tensors_; }
  // Of a tensor that is not a trained head.
  MergeMatrix matrix_of(const TensorSpec& tensor) const;
  // Null unless an adapter brings one.
  const MatrixSource* head() const;
  // Whether any projection is stored in 4 bits already.
  bool is_quantised() const { return !quantised_.empty(); }

 private:
  void load_adapters();

  const MergeOptions& options_;
  ModelConfig config_;
  Checkpoint base_;
  std::vector<LoraAdapter> adapters_;
  std::map<std::string, std::vector<MergeTerm>, std::less<>> terms_;  // by tensor
  std::vector<TensorSpec> tensors_;
  std::map<std::string, BnbMatrix, std::less<>> quantised_;  // by tensor
};

}  // namespace nibble
