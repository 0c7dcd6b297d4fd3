#include "nibble/weights/mlx_adapter.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <set>

#include "nibble/base/error.h"
#include "nibble/io/atomic.h"
#include "nibble/io/json.h"

namespace nibble {
namespace {

constexpr JsonLimits mlx_config_limits{.max_bytes = std::size_t{1} << 20};
constexpr std::uint32_t most_layers = 1 << 12;

std::string_view suffix_of(LoraMatrix matrix) {
  constexpr std::array<std::string_view, 3> suffixes{"lora_a", "lora_b", "m"};
  return suffixes[static_cast<std::size_t>(matrix)];
}

// "model.layers.3.self_attn.q_proj.lora_a"
std::string tensor_name(std::uint32_t layer, Projection p, LoraMatrix matrix) {
  return fmt::format("{}.{}", projection_module_name(layer, p), suffix_of(matrix));
}

struct MlxPlace {
  std::uint32_t layer;
  Projection projection;
  LoraMatrix matrix;
};

// The place that such a name means.
std::optional<MlxPlace> place_of(std::string_view name) {
  constexpr std::string_view prefix = "model.layers.";
  MlxPlace place{};
  if (!name.starts_with(prefix)) return {};
  const auto [end, error] = std::from_chars(name.data() + prefix.size(), name.data() + name.size(), place.layer);
  if (error != std::errc() || place.layer >= most_layers) return {};
  for (const Projection p : all_projections) {
    for (const LoraMatrix matrix : lora_matrices(true)) {
      if (tensor_name(place.layer, p, matrix) == name) return MlxPlace{place.layer, p, matrix};
    }
  }
  return {};
}

// Layers and projections, which have to be the same in each.
void read_modules(const SafetensorsFile& file, LoraConfig& config) {
  std::map<std::uint32_t, std::set<Projection>> layers;
  for (const auto& [name, tensor] : file.tensors()) {
    const auto place = place_of(name);
    check<DataError>(place.has_value(), file.path().string(),
                     "The tensor {} belongs to no projection of a layer, as model.layers.0.self_attn.q_proj.lora_a; others are not supported.", name);
    layers[place->layer].insert(place->projection);
  }
  check<DataError>(!layers.empty(), file.path().string(), "The file holds no adapter.");
  const auto& first = layers.begin()->second;
  config.target_modules.assign(first.begin(), first.end());
  for (const auto& [layer, projections] : layers) {
    check<DataError>(projections == first, file.path().string(), "The layers {} and {} have not the same adapted projections, which is not supported.",
                     layers.begin()->first, layer);
    config.layers_to_transform.push_back(layer);
  }
}

// (columns, rows) of what is (rows, columns)
std::vector<float> transposed(const std::vector<float>& values, std::size_t rows, std::size_t columns) {
  std::vector<float> result(values.size());
  for (std::size_t i = 0; i < result.size(); ++i) result[i % columns * rows + i / columns] = values[i];
  return result;
}

fs::path mlx_weights_path(const fs::path& folder) { return folder / "adapters.safetensors"; }

}  // namespace

bool is_mlx_adapter(const fs::path& folder) {
  const auto path = folder / "adapter_config.json";
  return path_exists(path) && read_json_file(path, mlx_config_limits).contains("lora_parameters");
}

LoraConfig read_mlx_config(const fs::path& folder) {
  const auto path = folder / "adapter_config.json";
  const Json parsed = read_json_file(path, mlx_config_limits);
  const JsonObject json(parsed, path.string());
  const std::string type = json.string("fine_tune_type", "lora");
  if (type != "lora" && type != "dora") json.fail_key("fine_tune_type", "\"lora\" or \"dora\"");
  const auto parameters = json.object("lora_parameters");
  if (!parameters) json.fail_key("lora_parameters", "an object");
  LoraConfig config;
  config.base_model_name_or_path = json.string("model", "");
  config.rank = static_cast<std::uint32_t>(parameters->integer("rank", {1, 1 << 16}));
  config.lora_alpha = parameters->number("scale", {0.0, 1e9}) * config.rank;
  config.lora_dropout = parameters->number("dropout", {0.0, 1.0}, 0.0);
  config.use_dora = type == "dora";
  read_modules(SafetensorsFile(mlx_weights_path(folder)), config);
  return config;
}

LoraAdapter load_mlx_adapter(const fs::path& folder, const ModelConfig& model) {
  LoraConfig config = read_mlx_config(folder);
  if (config.layers_to_transform.size() == model.num_layers && config.layers_to_transform.back() + 1 == model.num_layers) {
    config.layers_to_transform.clear();
  }
  LoraAdapter adapter = make_lora_adapter(model, std::move(config));
  const SafetensorsFile file(mlx_weights_path(folder));
  std::size_t taken = 0;
  for (std::uint32_t layer = 0; layer < model.num_layers; ++layer) {
    for (const Projection p : all_projections) {
      if (!adapter.at(layer, p).used()) continue;
      for (const LoraMatrix matrix : lora_matrices(adapter.config.use_dora)) {
        const auto [rows, columns] = lora_dims(model, adapter.config.rank, p, matrix);
        const bool vector = matrix == LoraMatrix::magnitude;
        const auto values = read_adapter_tensor(file, tensor_name(layer, p, matrix), vector ? Shape{rows} : Shape{columns, rows});
        adapter.at(layer, p).matrix(matrix) = vector ? values : transposed(values, columns, rows);
        ++taken;
      }
    }
  }
  check<DataError>(taken == file.tensors().size(), file.path().string(), "The file has {} tensors; fine_tune_type and shapes make it {}.",
                   file.tensors().size(), taken);
  return adapter;
}

void save_mlx_adapter(const fs::path& folder, const LoraAdapter& adapter, const ModelConfig& model) {
  std::map<std::string, std::pair<const std::vector<float>*, Shape>> sources;  // values, and the shape they have now
  std::vector<TensorSpec> specs;
  std::set<Projection> used;
  std::set<std::uint32_t> layers;
  for (std::uint32_t layer = 0; layer < adapter.layers.size(); ++layer) {
    for (const Projection p : adapter.config.target_modules) {
      if (!adapter.at(layer, p).used()) continue;
      used.insert(p), layers.insert(layer);
      for (const LoraMatrix which : lora_matrices(adapter.config.use_dora)) {
        const auto [rows, columns] = lora_dims(model, adapter.config.rank, p, which);
        const std::string name = tensor_name(layer, p, which);
        sources.emplace(name, std::pair(&adapter.at(layer, p).matrix(which), Shape{rows, columns}));
        specs.push_back({name, DType::f32, which == LoraMatrix::magnitude ? Shape{rows} : Shape{columns, rows}});
      }
    }
  }
  Json keys = Json::array();
  for (const Projection p : used) keys.push_back(fmt::format("{}.{}", block_of(p), name_of(p)));
  SafetensorsWriter writer(mlx_weights_path(folder), specs, {{"format", "mlx"}});
  for (const TensorSpec& spec : writer.tensors()) {
    const auto& [values, shape] = sources.at(spec.name);
    const auto turned = transposed(*values, static_cast<std::size_t>(shape[0]), static_cast<std::size_t>(shape[1]));
    writer.append(std::as_bytes(std::span(turned)));
  }
  writer.finish();
  const Json config = {{"fine_tune_type", adapter.config.use_dora ? "dora" : "lora"},
                       {"model", adapter.config.base_model_name_or_path},
                       {"num_layers", layers.size()},
                       {"lora_parameters",
                        {{"rank", adapter.config.rank},
                         {"scale", adapter.config.scaling()},
                         {"dropout", adapter.config.lora_dropout},
                         {"keys", keys}}}};
  write_file_atomically(folder / "adapter_config.json", write_json(config));
}

}  // namespace nibble
