#include "nibble/weights/checkpoint_check.h"

#include <numeric>
#include <set>

#include "nibble/base/error.h"
#include "nibble/base/log.h"

namespace nibble {
namespace {

void check_tensor(const Checkpoint& checkpoint, const BaseTensor& expected) {
  check<DataError>(checkpoint.has(expected.name), checkpoint.folder().string(),
                   "The tensor {} of shape {} is missing; config.json makes it necessary.", expected.name,
                   to_string(expected.shape));
  const auto& [file, tensor] = checkpoint.at(expected.name);
  check<DataError>(tensor->shape == expected.shape, file->path().string(),
                   "The tensor {} has the shape {}; config.json makes it {}.", expected.name, to_string(tensor->shape),
                   to_string(expected.shape));
  const auto dtype = tensor->dtype;
  check<DataError>(dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16, file->path().string(),
                   "The tensor {} is {}; F32, F16 and BF16 are read.", expected.name, tensor->dtype_name);
}

}  // namespace

std::uint64_t BaseTensor::numel() const {
  return std::accumulate(shape.begin(), shape.end(), std::uint64_t{1}, [](auto product, auto size) { return product * static_cast<std::uint64_t>(size); });
}

namespace {

bool is_matrix_of_layer(std::string_view name, const Shape& shape) {
  return shape.size() == 2 && name != embedding_tensor_name && name != head_tensor_name;
}

}  // namespace

bool is_router(std::string_view name) { return name.ends_with(".mlp.gate.weight"); }

bool is_projection(std::string_view name, const Shape& shape) { return is_matrix_of_layer(name, shape) && !is_router(name); }

std::optional<BnbMatrix> quantised(const Checkpoint& checkpoint, const BaseTensor& tensor) {
  if (!is_matrix_of_layer(tensor.name, tensor.shape) || !checkpoint.has(tensor.name)) return std::nullopt;
  return bnb_matrix(checkpoint, tensor.name, static_cast<std::uint32_t>(tensor.shape[0]), static_cast<std::uint32_t>(tensor.shape[1]));
}

std::vector<BaseTensor> base_tensors(const ModelConfig& config) {
  const std::int64_t hidden = config.hidden_size;
  std::vector<BaseTensor> tensors;
  const Shape table{config.vocab_size, hidden};
  tensors.push_back({std::string(embedding_tensor_name), table});
  for (std::uint32_t layer = 0; layer < config.num_layers; ++layer) {
    for (const Norm norm : all_norms) {
      const bool of_a_head = norm == Norm::q || norm == Norm::k;
      if (of_a_head && !config.family.qk_norm) continue;
      tensors.push_back({norm_tensor_name(layer, norm), {of_a_head ? config.head_dim : hidden}});
    }
    for (const Projection projection : all_projections) {
      const auto [out, in] = projection_dims(config, projection);
      for (const std::string& module : module_names(config.experts.count, layer, projection)) tensors.push_back({module + ".weight", {out, in}});
      if (has_bias(config, projection)) tensors.push_back({bias_tensor_name(layer, projection), {out}});
    }
    if (config.has_experts()) tensors.push_back({router_tensor_name(layer), {config.experts.count, hidden}});
  }
  tensors.push_back({std::string(final_norm_tensor_name), {hidden}});
  if (!config.tie_word_embeddings) tensors.push_back({std::string(head_tensor_name), table});
  return tensors;
}

void check_checkpoint(const Checkpoint& checkpoint, const ModelConfig& config) {
  std::set<std::string, std::less<>> known{std::string(head_tensor_name)};
  for (const auto& tensor : base_tensors(config)) {
    known.insert(tensor.name);
    // Of what bitsandbytes has quantised the codes have a shape of their own, and other tensors follow it by name.
    if (quantised(checkpoint, tensor)) {
      for (auto next = checkpoint.tensors().upper_bound(tensor.name); next != checkpoint.tensors().end(); ++next) {
        if (!is_bnb_part(next->first, tensor.name)) break;
        known.insert(next->first);
      }
    } else {
      check_tensor(checkpoint, tensor);
    }
  }
  std::string first;
  std::size_t unused = 0;
  for (const auto& [name, entry] : checkpoint.tensors()) {
    // Old exports store RoPE's frequencies, which follow from the config.
    if (known.contains(name) || name.ends_with("rotary_emb.inv_freq")) continue;
    if (unused++ == 0) first = name;
  }
  if (unused == 0) return;
  log_warning(
      fmt::format("[{}] {} tensors are not part of this kind of model and are left out, {} first. Compare config.json "
                  "with the checkpoint.",
                  checkpoint.folder().string(), unused, first));
}

}  // namespace nibble
