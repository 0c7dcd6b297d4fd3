#include "nibble/weights/merger.h"

#include <cmath>

#include "nibble/base/error.h"
#include "nibble/weights/decoded_tensor.h"
#include "nibble/weights/gguf_model.h"

namespace nibble {

Merger::Merger(const MergeOptions& options) : options_(options), config_(read_model_config(options.model)), base_(open_checkpoint(options.model, config_)) {
  check_checkpoint(base_, config_);
  load_adapters();
  for (const auto& tensor : base_tensors(config_)) {
    const auto bnb = quantised(base_, tensor);
    tensors_.push_back({tensor.name, options.dtype.value_or(bnb ? bnb->dtype : written_dtype(*base_.at(tensor.name).tensor)), tensor.shape});
    if (bnb) quantised_.emplace(tensor.name, *bnb);
  }
  if (unties_head()) {
    tensors_.push_back(tensors_.front());  // the embedding, of the same type and shape
    tensors_.back().name = head_tensor_name;
  }
}

// What is no sum that could be weighed or added to another.
void Merger::check_alone(const LoraAdapter& adapter, const MergeAdapter& given) const {
  const bool alone = options_.adapters.size() == 1 && given.weight == 1;
  check<UsageError>(!adapter.head || alone, given.folder.string(),
                    "The adapter brings a head that was trained, which cannot be weighed or added to another; merge it alone.");
  check<UsageError>(!adapter.config.trains_tokens() || alone, given.folder.string(),
                    "The adapter brings rows of tokens that were trained, which cannot be weighed or added to another's; merge it alone.");
  check<UsageError>(!adapter.config.use_dora || alone, given.folder.string(),
                    "The adapter is of DoRA (use_dora), which is no sum that could be weighed or added to another; merge it alone.");
}

void Merger::load_adapters() {
  for (const MergeAdapter& adapter : options_.adapters) {
    check<UsageError>(std::isfinite(adapter.weight), adapter.folder.string(), "Its weight is {}; it must be a finite number.", adapter.weight);
    adapters_.push_back(load_lora_adapter(adapter.folder, config_));
    check_alone(adapters_.back(), adapter);
  }
  for (std::size_t i = 0; i < adapters_.size(); ++i) {
    const LoraModules modules = adapters_[i].modules();
    for (std::uint32_t layer = 0; layer < config_.num_layers; ++layer) {
      for (const Projection p : all_projections) {
        const LoraModule& module = modules[layer][static_cast<std::size_t>(p)];
        if (!module.used()) continue;
        add_terms(adapters_[i], layer, p, options_.adapters[i].weight * module.scaling);
      }
    }
  }
}

void Merger::add_terms(const LoraAdapter& adapter, std::uint32_t layer, Projection p, double scaling) {
  const LoraMatrices& all = adapter.at(layer, p);
  const auto modules = module_names(config_.experts.count, layer, p);
  const auto count = static_cast<std::uint32_t>(modules.size());
  for (std::uint32_t index = 0; index < count; ++index) {
    const LoraMatrices* own = &all;
    if (count > 1) {
      const auto a = LoraAdapter::part_of(all.a, index, count), b = LoraAdapter::part_of(all.b, index, count);
      own = &of_experts_.emplace_back(LoraMatrices{.a = {a.begin(), a.end()}, .b = {b.begin(), b.end()}});
    }
    terms_[modules[index] + ".weight"].push_back({own, scaling});
  }
}

const MatrixSource* Merger::head() const { return adapters_.size() == 1 && adapters_.front().head ? &*adapters_.front().head : nullptr; }

MergeNorms Merger::make(const TensorSpec& tensor, const TakeBytes& take) const {
  if (has_token_rows()) {
    const LoraAdapter& adapter = adapters_.front();
    if (tensor.name == embedding_tensor_name) return merge_rows(tensor, adapter.config.trained_tokens, adapter.token_rows, take);
    if (tensor.name == head_tensor_name) return merge_rows(tensor, adapter.config.trained_head_tokens, adapter.head_rows, take);
  }
  if (!head() || tensor.name != head_tensor_name) return merge_matrix(matrix_of(tensor), take);
  convert_matrix(*head(), tensor.dtype, tensor.name, take);
  return {};
}

MergeNorms Merger::merge_rows(const TensorSpec& tensor, const std::vector<std::uint32_t>& ids, const std::vector<float>& rows, const TakeBytes& take) const {
  const auto columns = static_cast<std::size_t>(tensor.shape.back()), width = size_of(tensor.dtype), row_bytes = columns * width;
  std::vector<std::byte> own(ids.size() * row_bytes);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    convert_from_f32(std::span(rows).subspan(i * columns, columns), tensor.dtype, std::span(own).subspan(i * row_bytes, row_bytes), tensor.name,
                     std::size_t{ids[i]} * columns);
  }
  std::uint64_t first = 0;
  std::vector<std::byte> piece;
  return merge_matrix(matrix_of(tensor), [&](std::span<const std::byte> bytes) {
    piece.assign(bytes.begin(), bytes.end());
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const std::uint64_t at = ids[i] * row_bytes;
      if (at < first || at >= first + bytes.size()) continue;
      std::copy_n(own.begin() + static_cast<std::ptrdiff_t>(i * row_bytes), row_bytes, piece.begin() + static_cast<std::ptrdiff_t>(at - first));
    }
    first += bytes.size();
    take(piece);
  });
}

MergeMatrix Merger::matrix_of(const TensorSpec& tensor) const {
  MergeMatrix matrix{.base = base_.at(tensor.name), .dtype = tensor.dtype};
  if (const auto quantised = quantised_.find(tensor.name); quantised != quantised_.end()) matrix.bnb = quantised->second;
  if (!is_projection(tensor.name, tensor.shape)) return matrix;
  matrix.through_nf4 = options_.onto == MergeBase::nf4 && !matrix.bnb;  // what is quantised has been through it
  if (const auto terms = terms_.find(tensor.name); terms != terms_.end()) matrix.terms = terms->second;
  return matrix;
}

fs::path tokenizer_of(const MergeOptions& options) {
  return text::tokenizer_folder(options.model, options.adapters.size() == 1 ? options.adapters.front().folder : fs::path());
}

}  // namespace nibble
