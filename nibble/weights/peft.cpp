#include "nibble/weights/peft.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "nibble/base/error.h"
#include "nibble/weights/mlx_adapter.h"

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
      check<DataError>(count == 1 || (config.target_pattern.empty() && config.exclude_pattern.empty() && config.exclude_modules.empty()), "adapter",
                       "The adapter's target_modules or exclude_modules are patterns, which are not supported for {} of experts.", name_of(projection));
      check<DataError>(count == 1 || !config.use_dora, "adapter", "The adapter is of DoRA (use_dora) and has {} of experts, which is not supported.",
                       name_of(projection));
      for (std::uint32_t index = 0; index < count; ++index) {
        for (const LoraMatrix matrix : lora_matrices(config.use_dora)) {
          places.emplace(peft_tensor_name(names[index], matrix), Place{layer, projection, matrix, module.rank, index, count});
        }
      }
    }
  }
  return places;
}

// A tied head has the embedding's rows, which PEFT then stores once.
void fit_tokens(LoraConfig& config, const ModelConfig& model, const std::string& origin) {
  if (model.tie_word_embeddings && config.trained_head_tokens == config.trained_tokens) config.trained_head_tokens.clear();
  check<DataError>(!model.tie_word_embeddings || config.trained_head_tokens.empty(), origin,
                   "The key \"trainable_token_indices\" names tokens of lm_head apart from those of embed_tokens, and the model ties the two; only the same "
                   "tokens for both are supported.");
  for (const auto* ids : {&config.trained_tokens, &config.trained_head_tokens}) {
    const auto beyond = std::find_if(ids->begin(), ids->end(), [&](std::uint32_t id) { return id >= model.vocab_size; });
    check<DataError>(beyond == ids->end(), origin, "The key \"trainable_token_indices\" names token {}; the model's tables have {} rows.",
                     beyond == ids->end() ? 0 : *beyond, model.vocab_size);
  }
}

// The rows of trained tokens, where the config names some.
std::vector<float> read_token_rows(const SafetensorsFile& file, std::string_view name, const std::vector<std::uint32_t>& ids, const ModelConfig& model) {
  return ids.empty() ? std::vector<float>() : read_adapter_tensor(file, name, Shape{static_cast<std::int64_t>(ids.size()), model.hidden_size});
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

const TensorInfo& adapter_tensor(const SafetensorsFile& file, std::string_view name, const Shape& expected) {
  const auto* tensor = file.find(name);
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

std::vector<float> read_adapter_tensor(const SafetensorsFile& file, std::string_view name, const Shape& shape) {
  auto values = file.read_as_f32(adapter_tensor(file, name, shape));
  const auto bad = std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
  check<DataError>(bad == values.end(), file.path().string(),
                   "The tensor {} holds a value that is not finite, at index {}.", name, bad - values.begin());
  return values;
}

std::string peft_tensor_name(std::string_view module, LoraMatrix matrix) {
  constexpr std::array<std::string_view, 3> suffixes{"lora_A.weight", "lora_B.weight", "lora_magnitude_vector"};
  return fmt::format("base_model.model.{}.{}", module, suffixes[static_cast<std::size_t>(matrix)]);
}

std::string peft_tensor_name(std::uint32_t layer, Projection projection, LoraMatrix matrix) {
  return peft_tensor_name(projection_module_name(layer, projection), matrix);
}

std::span<const LoraMatrix> lora_matrices(bool use_dora) {
  static constexpr std::array all{LoraMatrix::a, LoraMatrix::b, LoraMatrix::magnitude};
  return std::span(all).first(use_dora ? 3 : 2);
}

std::uint64_t LoraAdapter::parameter_count() const {
  std::uint64_t count = 0;
  for (const auto& layer : layers) {
    for (const auto& matrices : layer) count += matrices.a.size() + matrices.b.size() + matrices.magnitude.size();
  }
  return count + token_rows.size() + head_rows.size();
}

bool LoraAdapter::has_magnitudes() const {
  const auto begun = [](const LoraMatrices& matrices) {
    return std::any_of(matrices.magnitude.begin(), matrices.magnitude.end(), [](float value) { return value != 0; });
  };
  return std::any_of(layers.begin(), layers.end(), [&](const auto& layer) { return std::any_of(layer.begin(), layer.end(), begun); });
}

ProjectionDims lora_dims(const ModelConfig& model, std::uint32_t rank, Projection projection, LoraMatrix matrix) {
  const auto [out, in] = projection_dims(model, projection);
  return matrix == LoraMatrix::a ? ProjectionDims{rank, in} : ProjectionDims{out, matrix == LoraMatrix::b ? rank : 1};
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
  if (is_mlx_adapter(folder)) return load_mlx_adapter(folder, model);
  LoraAdapter adapter{.config = read_lora_config(folder), .experts = model.experts.count};
  fit_tokens(adapter.config, model, folder.string());
  const auto opened = std::make_shared<const SafetensorsFile>(weights_path(folder));
  const SafetensorsFile& file = *opened;
  const auto places = places_of(model, adapter.config);
  for (const auto& [name, tensor] : file.tensors()) {
    if (adapter.config.saves_head && name == peft_head_tensor_name) continue;
    if (!adapter.config.trained_tokens.empty() && name == peft_token_rows_name) continue;
    if (!adapter.config.trained_head_tokens.empty() && name == peft_head_rows_name) continue;
    check<DataError>(places.contains(name), file.path().string(),
                     "The tensor {} is no LoRA matrix of a module of this model that adapter_config.json names.", name);
  }
  adapter.layers.resize(model.num_layers);
  for (const auto& [name, place] : places) {
    const auto [rows, columns] = lora_dims(model, place.rank, place.projection, place.matrix);
    const Shape shape = place.matrix == LoraMatrix::magnitude ? Shape{rows} : Shape{rows, columns};
    auto& matrix = adapter.at(place.layer, place.projection).matrix(place.matrix);
    if (place.count == 1) {
      matrix = read_adapter_tensor(file, name, shape);
      continue;
    }
    const auto values = read_adapter_tensor(file, name, shape);
    matrix.resize(place.count * values.size());
    std::copy(values.begin(), values.end(), matrix.begin() + static_cast<std::ptrdiff_t>(place.index * values.size()));
  }
  adapter.token_rows = read_token_rows(file, peft_token_rows_name, adapter.config.trained_tokens, model);
  adapter.head_rows = read_token_rows(file, peft_head_rows_name, adapter.config.trained_head_tokens, model);
  if (text::has_tokenizer(folder)) adapter.tokenizer = text::read_tokenizer_files(folder);
  if (adapter.config.saves_head) {
    adapter.head = source_of(opened, adapter_tensor(file, peft_head_tensor_name, Shape{model.vocab_size, model.hidden_size}));
  }
  return adapter;
}

}  // namespace nibble
