#include "nibble/base/error.h"
#include "nibble/io/gguf.h"
#include "nibble/quant/ggml.h"
#include "nibble/weights/adapter_export.h"
#include "nibble/weights/gguf_metadata.h"
#include "nibble/weights/gguf_names.h"
#include "nibble/weights/merge_matrix.h"

namespace nibble {
namespace {

GgufMetadata metadata_of(const ExportedAdapter& exported, GgmlType type) {
  const LoraConfig& config = exported.adapter.config;
  const std::string base = fs::path(config.base_model_name_or_path).filename().string();
  return {{"general.architecture", gguf_architecture(exported.config)},
          {"general.type", std::string("adapter")},
          {"general.file_type", type == GgmlType::f32 ? 0u : 1u},
          {"general.base_model.count", 1u},
          {"general.base_model.0.name", base.empty() ? std::string("base") : base},
          {"adapter.type", std::string("lora")},
          {"adapter.lora.alpha", static_cast<float>(config.scaling() * config.rank)}};
}

// B with the rows of each head as GGUF files of llama have them.
std::vector<float> interleaved(const std::vector<float>& b, std::uint32_t rank, std::uint32_t head_dim) {
  std::vector<float> result(b.size());
  for (std::size_t row = 0; row * rank < b.size(); ++row) {
    const auto from = b.begin() + static_cast<std::ptrdiff_t>(row * rank);
    std::copy(from, from + rank, result.begin() + static_cast<std::ptrdiff_t>(interleaved_row(row, head_dim) * rank));
  }
  return result;
}

// llama.cpp multiplies by alpha over the rank that it finds in the matrices.
void scale(std::vector<float>& b, double factor) {
  if (factor == 1) return;
  for (float& value : b) value = static_cast<float>(value * factor);
}

}  // namespace

void save_gguf_adapter(const fs::path& path, const ExportedAdapter& exported, GgmlType type) {
  const LoraAdapter& adapter = exported.adapter;
  const LoraModules modules = adapter.modules();
  const double alpha = adapter.config.scaling() * adapter.config.rank;
  const bool rows_interleaved = exported.config.family.interleaved_in_gguf;
  std::vector<GgufSpec> specs;
  std::vector<std::vector<std::byte>> bytes;
  for (std::uint32_t layer = 0; layer < adapter.layers.size(); ++layer) {
    for (const Projection p : adapter.config.target_modules) {
      const auto& [rank, scaling] = modules[layer][static_cast<std::size_t>(p)];
      if (rank == 0) continue;
      for (const LoraMatrix which : {LoraMatrix::a, LoraMatrix::b}) {
        const auto [rows, columns] = lora_dims(exported.config, rank, p, which);
        const std::string tensor = module_names(exported.config.experts.count, layer, p).front() + ".weight";
        const std::string name = *gguf_tensor_name(tensor) + (which == LoraMatrix::a ? ".lora_a" : ".lora_b");
        specs.push_back({name, type, expert_in(tensor) ? Shape{exported.config.experts.count, rows, columns} : Shape{rows, columns}});
        std::vector<float> values = adapter.at(layer, p).matrix(which);
        if (which == LoraMatrix::b) scale(values, scaling * rank / alpha);
        if (rows_interleaved && which == LoraMatrix::b && p <= Projection::k)
          values = interleaved(values, rank, exported.config.head_dim);
        auto& out = bytes.emplace_back(specs.back().bytes());
        convert_from_f32(values, type == GgmlType::f32 ? DType::f32 : DType::f16, out, name, 0);
      }
    }
  }
  GgufWriter writer(path, metadata_of(exported, type), std::move(specs));
  for (const auto& tensor : bytes) writer.append(tensor);
  writer.finish();
}

}  // namespace nibble
