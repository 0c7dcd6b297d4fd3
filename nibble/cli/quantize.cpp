#include "nibble/weights/quantize.h"

#include <fmt/format.h>

#include <map>

#include "nibble/cli/command.h"
#include "nibble/cli/lora_flags.h"
#include "nibble/cli/terminal.h"
#include "nibble/cli/usage.h"
#include "nibble/report/progress.h"

namespace nibble::cli {
namespace {

struct QuantizeFlags {
  QuantizeOptions options;
  std::string compute_dtype = "bf16", start;
  LoraStart settings{.lora = {.rank = 16, .lora_alpha = 32}};
  LoraFlags lora;
};

// What --init-lora-weights asks for; nothing where it is not given.
std::optional<LoraStart> start_of(QuantizeFlags& flags) {
  if (flags.start.empty()) return {};
  LoraStart start = lora_start_of(flags.start);
  start.lora = flags.settings.lora, start.loftq_rounds = flags.settings.loftq_rounds, start.seed = flags.settings.seed;
  flags.lora.finish(start.lora);
  return start;
}

int run(QuantizeFlags flags) {
  flags.options.compute_dtype = float_dtypes.at(flags.compute_dtype);
  flags.options.start = start_of(flags);
  Progress progress(stderr, is_terminal(stderr));
  flags.options.progress = [&](double done) { progress.part("Quantising", done); };
  const QuantizeResult result = quantize_model(flags.options);
  progress.finish_line();
  fmt::print("{}: {} in {} file{}, of {}; {} matrices in NF4{}\n", flags.options.output.string(), human_bytes(result.saved.bytes),
             result.saved.files, result.saved.files == 1 ? "" : "s", human_bytes(result.source_bytes), result.matrices,
             flags.options.double_quant ? ", their scales in 8 bits" : "");
  if (const auto& start = flags.options.start) {
    const std::string output = flags.options.output.string();
    fmt::print("The adapter that belongs to this base: train with --model {} --init-adapter {}/{}\n", output, output, folder_of(start->kind));
  }
  return exit_done;
}

}  // namespace

void add_quantize(CLI::App& app, Action& action) {
  auto flags = std::make_shared<QuantizeFlags>();
  QuantizeOptions& options = flags->options;
  CLI::App* verb = app.add_subcommand(
      "quantize",
      "Writes a model in 4 bits, as bitsandbytes and transformers save and load it.\n"
      "The projections become NF4, as every verb makes them when it loads the model; what is written loads faster, is a\n"
      "third of the size, and gives the same numbers. With --double-quant it is smaller still, and the scales are rounded.");
  verb->add_option("--model", options.model, "Model folder")->required();
  verb->add_option("--output,--out", options.output, "Folder to write")->required();
  verb->add_flag("--double-quant", options.double_quant, "Quantise the scales too (bnb_4bit_use_double_quant): 0.37 bits a weight less");
  verb->add_option("--compute-dtype", flags->compute_dtype,
                   "What config.json tells transformers to compute in (bnb_4bit_compute_dtype): bf16, f16 or f32")
      ->check(CLI::IsMember({"bf16", "f16", "f32"}))
      ->capture_default_str();
  verb->add_option("--max-shard-size,--shard-size", options.max_shard_bytes, "Largest file of weights, as 5GB or 2GiB")
      ->transform(size_in_bytes())
      ->type_name("TEXT")
      ->default_str("5GB");
  verb->add_flag("--overwrite", options.overwrite, "Replace the output folder where it is not empty, but nothing except a model or an adapter lies there");
  auto* group = verb->add_option_group("Start of an adapter");
  CLI::Option* start = group->add_option("--init-lora-weights", flags->start,
                    "Make the base together with an adapter for it: pissa (the matrices' principal parts; also pissa_niter_N, faster with a\n"
                    "small N) or loftq (what NF4 changes). The adapter goes to OUTPUT/pissa_init or loftq_init");
  flags->lora.add_to(*group, flags->settings.lora);
  group->add_option("--loftq-iter", flags->settings.loftq_rounds, "Rounds of quantising and of fitting the adapter")->capture_default_str()->check(CLI::Range(1, 100));
  group->add_option("--seed", flags->settings.seed, "Of the search for principal parts")->capture_default_str();
  for (CLI::Option* option : group->get_options()) {
    if (option != start && option->nonpositional()) option->needs(start);
  }
  verb->callback([flags, &action] { action = [flags] { return run(*flags); }; });
}

}  // namespace nibble::cli
