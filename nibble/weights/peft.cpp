#include "nibble/weights/peft.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "nibble/base/error.h"
#include "nibble/io/safetensors.h"

namespace nibble {
namespace {

struct Place {
  std::uint32_t layer;
  Projection projection;
  LoraMatrix matrix;
  std::uint32_t rank;
  std::uint32_t index, count;  // of the matrices that lie one below the other
};

// Each tensor that the adapter must have, by name.
std::map<std::string, Place, std::less<>> places_of(const ModelConfig& model, const LoraConfig& config) {
  std::map<std::string, Place, std::less<>> places;
  const LoraModules modules = modules_of(config, model.num_layers);
  for (std::uint32_t layer = 0; layer < model.num_layers; ++layer) {
    for (const Projection projection : config.target_modules) {
      const LoraModule& module = modules[layer][static_cast<std::size_t>(projection)];
      if (!module.used()) continue;
      const auto names = module_names(model.experts.count, layer, projection);
      const auto count = static_cast<std::uint32_t>(names.size());
      check<DataError>(count == 1 || config.is_uniform(), "adapter",
                       "The adapter has ranks or alphas by module (rank_pattern, alpha_pattern) and {} of experts, which have to be alike.",
                       name_of(projection));
      for (std::uint32_t index = 0; index < count; ++index) {
        for (const auto matrix : {LoraMatrix::a, LoraMatrix::b}) {
          places.emplace(peft_tensor_name(names[index], matrix), Place{layer, projection, matrix, module.rank, index, count});
        }
      }
    }
  }
  return places;
}

const TensorInfo& tensor_of(const SafetensorsFile& file, std::string_view name, ProjectionDims dims) {
  const auto* tensor = file.find(name);
  const Shape expected{dims.out, dims.in};
  check<DataError>(tensor != nullptr, file.path().string(),
                   "The tensor {} of shape {} is missing; model and adapter_config.json make it necessary.", name,
                   to_string(expected));
  check<DataError>(tensor->shape == expected, file.path().string(),
                   "The tensor {} has the shape {}; model and adapter_config.json make it {}.", name,
                   to_string(tensor->shape), to_string(expected));
  check<DataError>(tensor->dtype == DType::f32 || tensor->dtype == DType::f16 || tensor->dtype == DType::bf16,
                   file.path().string(), "The tensor {} is {}; F32, F16 and BF16 are read.", name, tensor->dtype_name);
  return *tensor;
}

std::vector<float> read_matrix(const SafetensorsFile& file, const std::string& name, ProjectionDims dims) {
  auto values = file.read_as_f32(tensor_of(file, name, dims));
  const auto bad = std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
  check<DataError>(bad == values.end(), file.path().string(),
                   "The tensor {} holds a value that is not finite, at index {}.", name, bad - values.begin());
  return values;
}

fs::path weights_path(const fs::path& folder) {
  const auto path = folder / "adapter_model.safetensors";
  if (path_exists(path)) return path;
  check<DataError>(
      !path_exists(folder / "adapter_model.bin"), folder.string(),
      "The adapter is stored as adapter_model.bin, which can run code when it is read and is not supported; save "
      "it as safetensors with PEFT first.");
  fail<DataError>(folder.string(), "The folder has no adapter_model.safetensors.");
}

}  // namespace

std::string peft_tensor_name(std::string_view module, LoraMatrix matrix) {
  return fmt::format("base_model.model.{}.lora_{}.weight", module, matrix == LoraMatrix::a ? 'A' : 'B');
}

std::string peft_tensor_name(std::uint32_t layer, Projection projection, LoraMatrix matrix) {
  return peft_tensor_name(projection_module_name(layer, projection), matrix);
}

std::uint64_t LoraAdapter::parameter_count() const {
  std::uint64_t count = 0;
  for (const auto& layer : layers) {
    for (const auto& matrices : layer) count += matrices.a.size() + matrices.b.size();
  }
  return count;
}

ProjectionDims lora_dims(const ModelConfig& model, std::uint32_t rank, Projection projection, LoraMatrix matrix) {
  const auto [out, in] = projection_dims(model, projection);
  return matrix == LoraMatrix::a ? ProjectionDims{rank, in} : ProjectionDims{out, rank};
}

LoraAdapter make_lora_adapter(const ModelConfig& model, LoraConfig config) {
  LoraAdapter adapter{.config = std::move(config), .experts = model.experts.count};
  adapter.layers.resize(model.num_layers);
  for (const auto& [name, place] : places_of(model, adapter.config)) {
    const auto [rows, columns] = lora_dims(model, place.rank, place.projection, place.matrix);
    adapter.at(place.layer, place.projection).matrix(place.matrix).resize(std::size_t{place.count} * rows * columns);
  }
  return adapter;
}

LoraAdapter load_lora_adapter(const fs::path& folder, const ModelConfig& model) {
  LoraAdapter adapter{.config = read_lora_config(folder), .experts = model.experts.count};
  const auto opened = std::make_shared<const SafetensorsFile>(weights_path(folder));
  const SafetensorsFile& file = *opened;
  const auto places = places_of(model, adapter.config);
  for (const auto& [name, tensor] : file.tensors()) {
    if (adapter.config.saves_head && name == peft_head_tensor_name) continue;
    check<DataError>(places.contains(name), file.path().string(),
                     "The tensor {} is no LoRA matrix of a module of this model that adapter_config.json names.", name);
  }
  adapter.layers.resize(model.num_layers);
  for (const auto& [name, place] : places) {
    const auto dims = lora_dims(model, place.rank, place.projection, place.matrix);
    auto& matrix = adapter.at(place.layer, place.projection).matrix(place.matrix);
    if (place.count == 1) {
      matrix = read_matrix(file, name, dims);
      continue;
    }
    const auto values = read_matrix(file, name, dims);
    matrix.resize(place.count * values.size());
    std::copy(values.begin(), values.end(), matrix.begin() + static_cast<std::ptrdiff_t>(place.index * values.size()));
  }
  if (adapter.config.saves_head) {
    adapter.head = source_of(opened, tensor_of(file, peft_head_tensor_name, {model.vocab_size, model.hidden_size}));
  }
  return adapter;
}

}  // namespace nibble
