#include "nibble/weights/gguf_model.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "nibble/base/error.h"
#include "nibble/quant/ggml.h"
#include "nibble/weights/checkpoint_check.h"
#include "nibble/weights/decoded_tensor.h"
#include "nibble/weights/fused_experts.h"
#include "nibble/weights/gguf_names.h"

namespace nibble {
namespace {

constexpr std::uint64_t decoded_piece = std::uint64_t{1} << 14;  // that are decoded at a time

// Values that stand in the file as they are; others become f32.
std::optional<DType> plain_dtype(const GgufTensor& tensor) {
  switch (static_cast<GgmlType>(tensor.type)) {
    case GgmlType::f32: return DType::f32;
    case GgmlType::f16: return DType::f16;
    case GgmlType::bf16: return DType::bf16;
    default: return std::nullopt;
  }
}

class GgufModel : public TensorFile {
 public:
  GgufModel(const fs::path& path, const ModelConfig& config) : file_(path) {
    std::set<std::string, std::less<>> known{"rope_freqs.weight"};
    for (const BaseTensor& wanted : base_tensors(config)) {
      const std::string name = *gguf_tensor_name(wanted.name);
      known.insert(name);
      const auto at = file_.tensors().find(name);
      if (at == file_.tensors().end()) continue;
      const bool rotated = name.ends_with("attn_q.weight") || name.ends_with("attn_k.weight");
      if (const auto expert = expert_in(wanted.name)) {
        add_expert(wanted, at->second, *expert, config.experts.count);
      } else {
        add(wanted.name, at->second, config.family.interleaved_in_gguf && rotated ? config.head_dim : 0);
      }
    }
    for (const auto& [name, tensor] : file_.tensors()) {
      check<DataError>(known.contains(name), path.string(),
                       "The tensor {} is no part of a model of the kind {}; what it would do cannot be left out.", name,
                       config.model_type);
    }
  }

  const fs::path& path() const override { return file_.path(); }
  const TensorMap& tensors() const override { return tensors_; }

  void read(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    const Source& source = sources_.at(tensor.name);
    check(offset <= tensor.bytes && out.size() <= tensor.bytes - offset, path().string(),
          "Bytes {} to {} of the tensor {} were asked for, but it has {}.", offset, offset + out.size(), tensor.name,
          tensor.bytes);
    const std::uint64_t width = size_of(*tensor.dtype), columns = static_cast<std::uint64_t>(tensor.shape.back());
    check(offset % width == 0 && out.size() % width == 0, path().string(),
          "Parts of values of the tensor {} were asked for.", tensor.name);
    for (std::uint64_t at = offset / width, left = out.size() / width; left > 0;) {
      const std::uint64_t row = at / columns,
                          count = source.head_dim == 0 ? left : std::min(left, columns - at % columns);
      const std::uint64_t first =
          source.head_dim == 0 ? source.first + at : interleaved_row(row, source.head_dim) * columns + at % columns;
      read_values(*source.tensor, first, width, out.first(count * width));
      out = out.subspan(count * width);
      at += count, left -= count;
    }
  }

 private:
  struct Source {
    const GgufTensor* tensor = nullptr;
    std::uint32_t head_dim = 0;  // of heads whose rows are interleaved; 0: rows stand in order
    std::uint64_t first = 0;     // value of the file's tensor, which holds all experts
  };

  void add(const std::string& name, const GgufTensor& tensor, std::uint32_t head_dim) {
    check<DataError>(head_dim == 0 || (tensor.shape.size() == 2 && tensor.shape[0] % head_dim == 0), path().string(),
                     "The tensor {} has the shape {}; whole heads of {} rows are expected.", tensor.name,
                     to_string(tensor.shape), head_dim);
    show(name, tensor.shape, {&tensor, head_dim});
  }

  void add_expert(const BaseTensor& wanted, const GgufTensor& tensor, std::uint32_t expert, std::uint32_t experts) {
    const Shape all{experts, wanted.shape[0], wanted.shape[1]};
    check<DataError>(tensor.shape == all, path().string(), "The tensor {} has the shape {}; the metadata make it {}, the experts' matrices.",
                     tensor.name, to_string(tensor.shape), to_string(all));
    show(wanted.name, wanted.shape, {.tensor = &tensor, .first = expert * wanted.numel()});
  }

  void show(const std::string& name, const Shape& shape, const Source& source) {
    const GgufTensor& tensor = *source.tensor;
    check<DataError>(tensor.info().decoded, path().string(), "The tensor {} is {}, which is not decoded; {} are.",
                     tensor.name, tensor.info().name, decoded_names());
    TensorInfo info{.name = name,
                    .dtype_name = std::string(tensor.info().name),
                    .dtype = plain_dtype(tensor).value_or(DType::f32),
                    .shape = shape};
    info.bytes = info.numel() * size_of(*info.dtype);
    tensors_.emplace(name, std::move(info));
    sources_.emplace(name, source);
  }

  static std::string decoded_names() {
    std::string names;
    for (const GgmlTypeInfo& type : ggml_types) {
      if (type.decoded) names += fmt::format("{}{}", names.empty() ? "" : ", ", type.name);
    }
    return names;
  }

  // Values of the file from `first` on.
  void read_values(const GgufTensor& tensor, std::uint64_t first, std::uint64_t width, std::span<std::byte> out) const {
    if (plain_dtype(tensor)) return file_.read(tensor, first * width, out);
    const GgmlTypeInfo& type = tensor.info();
    std::vector<std::byte> blocks;
    std::vector<float> values;
    while (!out.empty()) {
      const std::uint64_t skipped = first % type.values, wanted = std::min(out.size() / width, decoded_piece - skipped);
      const std::uint64_t count = (skipped + wanted + type.values - 1) / type.values;
      blocks.resize(count * type.bytes);
      values.resize(count * type.values);
      file_.read(tensor, first / type.values * type.bytes, blocks);
      ggml_dequantize(static_cast<GgmlType>(tensor.type), blocks, values);
      std::memcpy(out.data(), values.data() + skipped, wanted * width);
      out = out.subspan(wanted * width);
      first += wanted;
    }
  }

  GgufFile file_;
  TensorMap tensors_;
  std::map<std::string, Source, std::less<>> sources_;
};

}  // namespace

Checkpoint open_checkpoint(const fs::path& model, const ModelConfig& config) {
  if (!is_gguf(model)) {
    Checkpoint checkpoint(model);
    decode_tensors(checkpoint, config.fp8);
    split_experts(checkpoint, config);
    return checkpoint;
  }
  return Checkpoint(std::make_unique<const GgufModel>(model, config));
}

}  // namespace nibble
