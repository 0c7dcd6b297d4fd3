#include "nibble/train/merge_losses.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <memory>

#include "nibble/base/error.h"
#include "nibble/cli/command.h"
#include "nibble/cli/device_flags.h"
#include "nibble/cli/terminal.h"
#include "nibble/cli/usage.h"
#include "nibble/report/progress.h"

namespace nibble::cli {
namespace {

struct MergeFlags {
  MergeOptions options;
  std::vector<std::string> adapters;
  std::string dtype, onto = "original", format = "safetensors";
  std::string valid;
  TrainOptions rows;  // of which what is said of the rows of `valid` counts
  DeviceFlags device;
};

// "FOLDER", or "FOLDER:WEIGHT". A folder that is there counts as one, whatever its name.
MergeAdapter adapter_of(const std::string& text) {
  const auto colon = text.rfind(':');
  if (colon == text.npos || path_exists(text)) return {.folder = text};
  MergeAdapter adapter{.folder = text.substr(0, colon)};
  const auto [end, error] = std::from_chars(text.data() + colon + 1, text.data() + text.size(), adapter.weight);
  check<UsageError>(error == std::errc() && end == text.data() + text.size(), "--adapter",
                    "\"{}\" does not end with a number; give a folder, or FOLDER:WEIGHT.", text);
  return adapter;
}

const std::map<std::string, GgufModelType> gguf_types{{"", GgufModelType::stored},  {"bf16", GgufModelType::bf16}, {"f16", GgufModelType::f16},
                                                      {"f32", GgufModelType::f32}, {"q8_0", GgufModelType::q8_0}, {"q4_0", GgufModelType::q4_0}};

void set_type(MergeFlags& flags) {
  if (flags.format == "gguf") {
    flags.options.gguf = gguf_types.at(flags.dtype);
    return;
  }
  check<UsageError>(flags.dtype.empty() || float_dtypes.contains(flags.dtype), "--dtype", "{} is a type of GGUF files; give --format gguf, or bf16, f16 or f32.",
                    flags.dtype);
  if (!flags.dtype.empty()) flags.options.dtype = float_dtypes.at(flags.dtype);
}

// The rows of --valid, read before anything is written.
std::unique_ptr<RunData> valid_rows(const MergeFlags& flags, Progress& progress) {
  if (flags.valid.empty()) return nullptr;
  TrainOptions rows = flags.rows;
  rows.model = flags.options.model;
  rows.data = flags.valid;
  if (flags.options.adapters.size() == 1) rows.init_adapter = flags.options.adapters.front().folder;  // whose tokenizer counts
  const ModelConfig config = read_model_config(rows.model);
  rows.max_length = std::min(rows.max_length, config.max_position_embeddings);
  return open_run_data(rows, [&](double done) { progress.part("Reading the data", done); });
}

// What the other base would have come to.
void print_losses(const MergeFlags& flags, const RunData& data, Progress& progress) {
  gpu::Device device = flags.device.open();
  const MergeLosses losses = merge_losses(flags.options, device, data.train, flags.rows.batch_size,
                                          [&](double done) { progress.part("Evaluating", done); });
  progress.finish_line();
  if (losses.original) {
    fmt::print("Validation loss, in f32: {:.6f} merged onto the original weights, {:.6f} onto those in NF4, which is {:+.6f}.\n",
               *losses.original, losses.nf4, losses.nf4 - *losses.original);
  } else {
    fmt::print("Validation loss, in f32: {:.6f}; the model is in 4 bits already.\n", losses.nf4);
  }
  print_profile(device);
}

void print_norms(const MergeFlags& flags, const MergeNorms& norms) {
  if (norms.weights == 0) return;
  const char* changes = flags.adapters.size() > 1 ? "the adapters change" : "the adapter changes";
  const auto share = [&](double squares) { return 100 * std::sqrt(squares / norms.weights); };
  if (norms.nf4_error == 0) {
    fmt::print("Of the norm of the adapted weights, which were in 4 bits already, {} {:.3f}%.\n", changes, share(norms.update));
    return;
  }
  fmt::print("Of the norm of the adapted weights, {} {:.3f}%; NF4 changes {:.3f}%, {}.\n", changes, share(norms.update),
             share(norms.nf4_error),
             flags.options.onto == MergeBase::nf4 ? "which is in what was written" : "which training saw and what was written leaves out");
}

int run(MergeFlags flags) {
  set_type(flags);
  for (const std::string& adapter : flags.adapters) flags.options.adapters.push_back(adapter_of(adapter));
  flags.options.onto = flags.onto == "nf4" ? MergeBase::nf4 : MergeBase::original;
  Progress progress(stderr, is_terminal(stderr));
  const auto rows = valid_rows(flags, progress);
  flags.options.progress = [&](double done) { progress.part("Merging", done); };
  const auto [saved, norms, notes] = merge(flags.options);
  progress.finish_line();
  fmt::print("{}: {} in {} file{}\n", flags.options.output.string(), human_bytes(saved.bytes), saved.files,
             saved.files == 1 ? "" : "s");
  for (const std::string& note : notes) fmt::print("{}\n", note);
  print_norms(flags, norms);
  if (rows) print_losses(flags, *rows, progress);
  return exit_done;
}

}  // namespace

void add_merge(CLI::App& app, Action& action) {
  auto flags = std::make_shared<MergeFlags>();
  MergeOptions& options = flags->options;
  CLI::App* verb = app.add_subcommand(
      "merge",
      "Adds an adapter, or several, to their model and writes a model that stands alone, as a folder or as a GGUF file.\n"
      "W + scaling * B A is computed in f32. Training saw W in NF4, so what is merged onto the original weights is\n"
      "not quite what was trained, but is free of NF4's rounding; --onto nf4 gives the weights of training.");
  verb->add_option("--model", options.model, "Model folder or GGUF file")->required();
  verb->add_option("--adapter", flags->adapters,
                   "PEFT adapter folder, or several, each with the weight of its update behind it, as A:0.7 B:0.3;\n"
                   "left out, the model alone is written");
  verb->add_option("--output", options.output, "Folder to write; with --format gguf the file")->required();
  verb->add_option("--format", flags->format,
                   "safetensors (a folder as transformers has it) or gguf (one file for llama.cpp, tokenizer and template included)")
      ->check(CLI::IsMember({"safetensors", "gguf"}))
      ->capture_default_str();
  verb->add_option("--onto", flags->onto,
                   "What the adapter is added to: original (the weights of the model) or nf4 (what they are in NF4)")
      ->check(CLI::IsMember({"original", "nf4"}))
      ->capture_default_str();
  verb->add_option("--dtype", flags->dtype,
                   "Type of the weights written: bf16, f16 or f32, in a GGUF file also q8_0 or q4_0 (with embedding and head in\n"
                   "q8_0); left out, the model's (of a GGUF file in blocks f32), or f16 in a GGUF file where the model is in blocks")
      ->check(CLI::IsMember({"bf16", "f16", "f32", "q8_0", "q4_0"}));
  verb->add_option("--max-shard-size", options.max_shard_bytes, "Largest file of weights, as 5GB or 2GiB")
      ->transform(size_in_bytes())
      ->type_name("TEXT")
      ->default_str("5GB");
  verb->add_option("--valid", flags->valid,
                   "Rows, JSONL or CSV: print their loss merged onto the original weights and onto those in NF4, to choose\n"
                   "with --onto")
      ->check(CLI::ExistingFile);
  verb->add_option("--batch-size", flags->rows.batch_size, "Of --valid: rows of one pass")->capture_default_str()->check(CLI::Range(1u, 65536u));
  verb->add_option("--max-length", flags->rows.max_length, "Of --valid: longest row in tokens")
      ->capture_default_str()->check(CLI::Range(2u, 1u << 20));
  flags->device.add_to(*verb, DeviceFlags::AdapterOption::names_lora);
  verb->add_flag("--overwrite", options.overwrite, "Replace the output where it is there already; a folder only where nothing but a model or an adapter lies there");
  verb->callback([flags, &action] { action = [flags] { return run(*flags); }; });
}

}  // namespace nibble::cli
