#include "nibble/weights/quantize.h"

#include <fmt/format.h>

#include <map>

#include "nibble/cli/command.h"
#include "nibble/cli/terminal.h"
#include "nibble/report/progress.h"

namespace nibble::cli {
namespace {

struct QuantizeFlags {
  QuantizeOptions options;
  std::string compute_dtype = "bf16";
};

int run(QuantizeFlags flags) {
  flags.options.compute_dtype = float_dtypes.at(flags.compute_dtype);
  Progress progress(stderr, is_terminal(stderr));
  flags.options.progress = [&](double done) { progress.part("Quantising", done); };
  const QuantizeResult result = quantize_model(flags.options);
  progress.finish_line();
  fmt::print("{}: {} in {} file{}, of {}; {} matrices in NF4{}\n", flags.options.output.string(), human_bytes(result.saved.bytes),
             result.saved.files, result.saved.files == 1 ? "" : "s", human_bytes(result.source_bytes), result.matrices,
             flags.options.double_quant ? ", their scales in 8 bits" : "");
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
      ->transform(CLI::AsSizeValue(true))
      ->default_str("5GB");
  verb->add_flag("--overwrite", options.overwrite, "Replace the output folder where it is not empty");
  verb->callback([flags, &action] { action = [flags] { return run(*flags); }; });
}

}  // namespace nibble::cli
