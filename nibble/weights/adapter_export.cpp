#include "nibble/weights/adapter_export.h"

#include <algorithm>
#include <array>

#include "nibble/base/error.h"
#include "nibble/io/atomic.h"
#include "nibble/weights/gguf_metadata.h"
#include "nibble/weights/lora_start.h"
#include "nibble/weights/model_folder.h"

namespace nibble {
namespace {

// The ranks that vLLM makes room for (--max-lora-rank).
constexpr std::array vllm_ranks{8u, 16u, 32u, 64u, 128u, 256u, 320u, 512u};

std::string_view name_of(Consumer consumer) {
  switch (consumer) {
    case Consumer::peft: return "peft";
    case Consumer::vllm: return "vllm";
    case Consumer::llama_cpp: return "llama.cpp";
    case Consumer::ollama: return "ollama";
    case Consumer::mlx: return "mlx";
  }
  return "?";
}

bool takes_gguf(Consumer consumer) { return consumer == Consumer::llama_cpp || consumer == Consumer::ollama; }

void check_output(const AdapterExport& options) {
  check<UsageError>(!options.output.empty(), "export", "No output is named.");
  const std::array inputs{options.model, options.adapter};
  if (options.consumer == Consumer::llama_cpp) {
    check_output_file(options.output, inputs, options.overwrite);
  } else {
    check_output_folder(options.output, inputs, options.overwrite);
  }
}

// What a consumer has no place for. Kinds of adapters that load_lora_adapter refuses (other modules) never get here.
void check_head(const AdapterExport& options, const ExportedAdapter& exported) {
  if (!exported.adapter.head || options.consumer == Consumer::peft) return;
  const std::string name(name_of(options.consumer));
  if (takes_gguf(options.consumer)) {
    fail<DataError>(
        options.adapter.string(),
        "The adapter brings a head that was trained{}; adapters in GGUF cannot hold one. Write the whole model with "
        "`nibble merge --format gguf`.",
        exported.config.tie_word_embeddings ? ", and the base, which ties it to the embedding, has no output.weight"
                                            : "");
  }
  fail<DataError>(
      options.adapter.string(),
      "The adapter brings a head that was trained (modules_to_save), which {} does not load. Write the whole "
      "model with `nibble merge`.",
      name);
}

void check_tokens(const AdapterExport& options, const LoraConfig& config) {
  check<DataError>(!config.trains_tokens() || options.consumer == Consumer::peft, options.adapter.string(),
                   "The adapter brings rows of tokens that were trained (trainable_token_indices), which {} does not load. Write the whole model with "
                   "`nibble merge{}`.",
                   name_of(options.consumer), takes_gguf(options.consumer) ? " --format gguf" : "");
}

// vLLM refuses DoRA, and adapters in GGUF have no place for magnitudes.
void check_dora(const AdapterExport& options, const LoraConfig& config) {
  const bool knows = options.consumer == Consumer::peft || options.consumer == Consumer::mlx;
  check<DataError>(!config.use_dora || knows, options.adapter.string(),
                   "The adapter is of DoRA (use_dora), which {} does not load. Write the whole model with `nibble merge{}`.", name_of(options.consumer),
                   takes_gguf(options.consumer) ? " --format gguf" : "");
}

// vLLM passes over rank_pattern and alpha_pattern, and mlx_lm has no place for them.
void check_uniform(const AdapterExport& options, const LoraConfig& config) {
  check<DataError>(config.is_uniform(), options.adapter.string(),
                   "The adapter has ranks or alphas by module (rank_pattern, alpha_pattern), which {} does not know. Write the whole model with "
                   "`nibble merge`.",
                   name_of(options.consumer));
}

// The same projections in the last layers.
void check_mlx(const AdapterExport& options, const ExportedAdapter& exported) {
  check<DataError>(!adapts_experts(exported.config, exported.adapter.config), options.adapter.string(),
                   "The adapter has projections of experts, which mlx_lm keeps in a form of its own; write the whole model with `nibble merge`.");
  check_uniform(options, exported.adapter.config);
  const auto& layers = exported.adapter.layers;
  const auto used = [](const auto& layer) {
    std::array<bool, 7> which{};
    std::transform(layer.begin(), layer.end(), which.begin(), [](const LoraMatrices& matrices) { return matrices.used(); });
    return which;
  };
  const auto wanted = used(layers.back());
  const auto same = static_cast<std::size_t>(std::count_if(layers.begin(), layers.end(), [&](const auto& layer) { return used(layer) == wanted; }));
  const auto first = layers.end() - static_cast<std::ptrdiff_t>(same);
  const bool last_ones = wanted != std::array<bool, 7>{} &&
                         std::all_of(layers.begin(), first, [&](const auto& layer) { return used(layer) == std::array<bool, 7>{}; }) &&
                         std::all_of(first, layers.end(), [&](const auto& layer) { return used(layer) == wanted; });
  check<DataError>(last_ones, options.adapter.string(),
                   "The adapter's layers (layers_to_transform, patterns) are not the last ones with the same projections in each, which alone mlx_lm "
                   "can adapt.");
}

void check_vllm(const AdapterExport& options, ExportedAdapter& exported) {
  const fs::path& adapter = options.adapter;
  check_uniform(options, exported.adapter.config);
  const auto rank = exported.adapter.config.rank;
  const auto* room = std::find_if(vllm_ranks.begin(), vllm_ranks.end(), [&](std::uint32_t r) { return r >= rank; });
  check<DataError>(room != vllm_ranks.end(), adapter.string(), "The adapter's rank is {}; vLLM takes at most {}.", rank,
                   vllm_ranks.back());
  exported.notes.push_back(fmt::format("Start vLLM with --enable-lora --max-lora-rank {} or more.", *room));
}

void check_gguf(const fs::path& adapter, ExportedAdapter& exported) {
  const LoraConfig& config = exported.adapter.config;
  check_for_llama_cpp(exported.config, adapter.string());
  exported.notes = llama_cpp_notes(exported.config);
  check<DataError>(config.lora_alpha != 0, adapter.string(),
                   "The adapter's lora_alpha is 0, which llama.cpp reads as a scaling of 1.");
  if (!config.is_uniform()) {
    exported.notes.emplace_back("Alphas by module were put into B, as llama.cpp has one alpha for all.");
  }
  if (config.use_rslora) {
    exported.notes.push_back(
        fmt::format("rsLoRA's scaling {:.6g} was put into alpha ({:.6g}), as llama.cpp always divides by the rank.",
                    config.scaling(), config.scaling() * config.rank));
  }
}

void subtract_start(const AdapterExport& options, ExportedAdapter& exported) {
  exported.adapter = without_start(exported.adapter, load_lora_adapter(options.start, exported.config));
  exported.adapter.config.base_model_name_or_path = options.model.string();
}

}  // namespace

ExportedAdapter check_export(const AdapterExport& options) {
  check_output(options);
  // Not among the initialisers: where one throws, GCC 12 destroys members of the aggregates before it twice.
  ExportedAdapter exported;
  exported.config = read_model_config(options.model);
  exported.adapter = load_lora_adapter(options.adapter, exported.config);
  if (!options.start.empty()) subtract_start(options, exported);
  check_head(options, exported);
  check_tokens(options, exported.adapter.config);
  check_dora(options, exported.adapter.config);
  if (options.consumer == Consumer::vllm) check_vllm(options, exported);
  if (options.consumer == Consumer::mlx) check_mlx(options, exported);
  if (takes_gguf(options.consumer)) check_gguf(options.adapter, exported);
  return exported;
}

}  // namespace nibble
