#include "nibble/weights/fused_experts.h"

#include "nibble/base/error.h"

#include <array>

namespace nibble {
namespace {

struct Fused {
  std::string_view name;  // behind "model.layers.N.mlp.experts."
  std::span<const Projection> members;
};

constexpr std::array gate_and_up{Projection::gate, Projection::up};
constexpr std::array down_alone{Projection::down};
constexpr std::array all_fused{Fused{"gate_up_proj", gate_and_up}, Fused{"down_proj", down_alone}};

// The matrices of one tensor of another file, which lie in it one behind the other.
class MatricesOfTensor : public TensorFile {
 public:
  explicit MatricesOfTensor(const Checkpoint::Entry& source) : source_(source) {}

  void add(const std::string& name, ProjectionDims dims) {
    TensorInfo info = *source_.tensor;
    info.name = name;
    info.shape = {dims.out, dims.in};
    info.bytes = info.numel() * size_of(*info.dtype);
    info.offset = end_;
    end_ += info.bytes;
    tensors_.emplace(name, std::move(info));
  }

  const fs::path& path() const override { return source_.file->path(); }
  const TensorMap& tensors() const override { return tensors_; }

  void read(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    check(offset <= tensor.bytes && out.size() <= tensor.bytes - offset, path().string(),
          "Bytes {} to {} of the tensor {} were asked for, but it has {}.", offset, offset + out.size(), tensor.name, tensor.bytes);
    source_.file->read(*source_.tensor, tensor.offset + offset, out);
  }

 private:
  Checkpoint::Entry source_;
  TensorMap tensors_;  // their offsets are those in the source's tensor
  std::uint64_t end_ = 0;
};

std::unique_ptr<const TensorFile> split(const Checkpoint& checkpoint, const ModelConfig& config, std::uint32_t layer, const std::string& name,
                                        std::span<const Projection> members) {
  const Checkpoint::Entry& entry = checkpoint.at(name);
  const std::string place = entry.file->path().string();
  const ProjectionDims one = projection_dims(config, members.front());
  const auto rows = static_cast<std::int64_t>(members.size() * one.out);
  const Shape expected{config.experts.count, rows, one.in};
  check<DataError>(entry.tensor->shape == expected, place, "The tensor {} has the shape {}; config.json makes it {}.", name,
                   to_string(entry.tensor->shape), to_string(expected));
  check<DataError>(!entry.tensor->dtype_name.starts_with("F8_"), place,
                   "The tensor {} is {}; experts in eight bits are read one by one, each with its scales.", name, entry.tensor->dtype_name);
  check<DataError>(entry.tensor->dtype.has_value(), place, "The tensor {} is {}; F64, F32, F16 and BF16 are read.", name, entry.tensor->dtype_name);
  auto matrices = std::make_unique<MatricesOfTensor>(entry);
  for (std::uint32_t expert = 0; expert < config.experts.count; ++expert) {
    for (const Projection p : members) {
      const std::string own = expert_module_name(layer, expert, p) + ".weight";
      check<DataError>(!checkpoint.has(own), checkpoint.folder().string(), "Both {} and {} are there; the experts are read from one of them.", name, own);
      matrices->add(own, projection_dims(config, p));
    }
  }
  return matrices;
}

}  // namespace

void split_experts(Checkpoint& checkpoint, const ModelConfig& config) {
  for (std::uint32_t layer = 0; config.has_experts() && layer < config.num_layers; ++layer) {
    for (const Fused& fused : all_fused) {
      const std::string name = fmt::format("model.layers.{}.mlp.experts.{}", layer, fused.name);
      if (!checkpoint.has(name)) continue;
      auto matrices = split(checkpoint, config, layer, name, fused.members);
      checkpoint.forget(name);
      checkpoint.put(std::move(matrices));
    }
  }
}

}  // namespace nibble
