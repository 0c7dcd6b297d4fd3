#include "nibble/weights/merge_tensors.h"

#include "nibble/base/error.h"
#include "nibble/weights/checkpoint_check.h"
#include "nibble/weights/gguf_model.h"

namespace nibble {

MergedTensors::MergedTensors(const MergeOptions& options)
    : options_(options), config_(read_model_config(options.model)), base_(open_checkpoint(options.model, config_)) {
  check_checkpoint(base_, config_);
  if (!options.adapter.empty()) adapter_ = load_lora_adapter(options.adapter, config_);
  for (const auto& tensor : base_tensors(config_)) {
    const auto bnb = quantised(base_, tensor);
    tensors_.push_back(
        {tensor.name, options.dtype.value_or(bnb ? bnb->dtype : *base_.at(tensor.name).tensor->dtype), tensor.shape});
    if (bnb) quantised_.emplace(tensor.name, *bnb);
  }
  if (unties_head()) {
    tensors_.push_back(tensors_.front());  // the embedding, of the same type and shape
    tensors_.back().name = head_tensor_name;
  }
  for (std::uint32_t layer = 0; layer < config_.num_layers; ++layer) {
    for (const Projection p : all_projections) {
      const bool adapted = adapter_ && adapter_->at(layer, p).used();
      projections_.emplace(projection_tensor_name(layer, p), adapted ? &adapter_->at(layer, p) : nullptr);
    }
  }
}

MergeNorms MergedTensors::make(const TensorSpec& tensor, const TakeBytes& take) const {
  if (!trains_head() || tensor.name != head_tensor_name) return merge_matrix(matrix_of(tensor), take);
  convert_matrix(*adapter_->head, tensor.dtype, tensor.name, take);
  return {};
}

MergeMatrix MergedTensors::matrix_of(const TensorSpec& tensor) const {
  MergeMatrix matrix{.base = base_.at(tensor.name), .dtype = tensor.dtype};
  if (const auto quantised = quantised_.find(tensor.name); quantised != quantised_.end())
    matrix.bnb = quantised->second;
  const auto projection = projections_.find(tensor.name);
  if (projection == projections_.end()) return matrix;
  matrix.through_nf4 = options_.onto == MergeBase::nf4 && !matrix.bnb;  // what is quantised has been through it
  matrix.lora = projection->second;
  if (adapter_) matrix.scaling = adapter_->config.scaling();
  return matrix;
}

void check_room(const fs::path& place, std::uint64_t bytes) {
  std::error_code error;
  const auto space = fs::space(place, error);
  check<DataError>(error || space.available >= bytes, place.string(),
                   "The merged weights take {} bytes; the disk has room for {}.", bytes, space.available);
}

}  // namespace nibble
