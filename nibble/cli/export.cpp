#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>

#include "nibble/base/error.h"
#include "nibble/cli/command.h"
#include "nibble/cli/modelfile.h"
#include "nibble/io/atomic.h"
#include "nibble/io/gguf.h"
#include "nibble/weights/adapter_export.h"
#include "nibble/weights/mlx_adapter.h"

namespace nibble::cli {
namespace {

const std::map<std::string, Consumer> consumers{{"peft", Consumer::peft},
                                                {"vllm", Consumer::vllm},
                                                {"llama.cpp", Consumer::llama_cpp},
                                                {"ollama", Consumer::ollama},
                                                {"mlx", Consumer::mlx}};

struct ExportFlags {
  AdapterExport options;
  std::string consumer, type = "f32", from;
};

void write_ollama(const ExportFlags& flags, ExportedAdapter& exported, const fs::path& folder) {
  const AdapterExport& options = flags.options;
  save_gguf_adapter(folder / "adapter.gguf", exported, options.gguf_type);
  const auto own = text::ChatTemplate::load(options.model);
  const auto chat = own ? ollama_template(*own) : std::nullopt;
  exported.notes.emplace_back(
      !own    ? "The model has no chat template, so the Modelfile has no TEMPLATE; Ollama takes the base's."
      : !chat ? "The model's chat template is not of a form that is known for Ollama, so the Modelfile has no "
                "TEMPLATE; Ollama takes "
                "the base's. Compare it with the one that the adapter was trained with."
              : "The TEMPLATE covers system, user and assistant messages, not tools or thinking.");
  const std::string base =
      !flags.from.empty() ? flags.from : fs::weakly_canonical(fs::absolute(options.model)).string();
  if (flags.from.empty() && !is_gguf(options.model)) {
    exported.notes.emplace_back(
        "FROM names the model folder, which Ollama converts for some architectures only; --from names a model of "
        "Ollama's or a GGUF file.");
  }
  write_file_atomically(folder / "Modelfile", modelfile(base, "./adapter.gguf", chat));
}

void write_folder(const ExportFlags& flags, ExportedAdapter& exported) {
  AtomicFolder folder(flags.options.output);
  switch (flags.options.consumer) {
    case Consumer::ollama: write_ollama(flags, exported, folder.path()); break;
    case Consumer::mlx: save_mlx_adapter(folder.path(), exported.adapter, exported.config); break;
    default: save_lora_adapter(folder.path(), exported.adapter);
  }
  folder.commit();
}

int run(ExportFlags flags) {
  AdapterExport& options = flags.options;
  options.consumer = consumers.at(flags.consumer);
  options.gguf_type = flags.type == "f16" ? GgmlType::f16 : GgmlType::f32;
  check<UsageError>(flags.from.empty() || options.consumer == Consumer::ollama, "--from",
                    "Only a Modelfile names a base; leave it out, or give --for ollama.");
  const bool one_line = std::none_of(flags.from.begin(), flags.from.end(), [](unsigned char c) { return c < 0x20; });
  check<UsageError>(one_line, "--from", "\"{}\" has a line break or another control character; FROM takes one line.", flags.from);
  ExportedAdapter exported = check_export(options);
  if (options.consumer == Consumer::llama_cpp) {
    save_gguf_adapter(options.output, exported, options.gguf_type);
  } else {
    write_folder(flags, exported);
  }
  fmt::print("{}: rank {}, scaling {:.6g}, for {}\n", options.output.string(), exported.adapter.config.rank,
             exported.adapter.config.scaling(), flags.consumer);
  for (const std::string& note : exported.notes) fmt::print("{}\n", note);
  return exit_done;
}

}  // namespace

void add_export(CLI::App& app, Action& action) {
  auto flags = std::make_shared<ExportFlags>();
  AdapterExport& options = flags->options;
  CLI::App* verb = app.add_subcommand(
      "export",
      "Writes an adapter as another program reads it.\n"
      "What that program does not accept or would misread is refused; what a user has to know is printed.");
  verb->add_option("--for", flags->consumer,
                   "The program: peft, vllm, llama.cpp (a GGUF file), ollama (that and a Modelfile) or mlx")
      ->check(CLI::IsMember({"peft", "vllm", "llama.cpp", "ollama", "mlx"}))
      ->required();
  verb->add_option("--model", options.model, "Model folder or GGUF file that the adapter was trained on; with --subtract-init\n"
                   "the one that its base was made from")->required();
  verb->add_option("--adapter", options.adapter, "Adapter folder, of PEFT or mlx_lm")->required();
  verb->add_option("--subtract-init", options.start,
                   "The adapter that was made with the base (BASE/pissa_init or BASE/loftq_init): what is written then belongs to the\n"
                   "original weights, at twice the rank");
  verb->add_option("--output,--out", options.output, "What to write: a file for llama.cpp, else a folder")->required();
  verb->add_option("--type", flags->type, "Type of matrices in a GGUF file: f32 or f16")
      ->check(CLI::IsMember({"f32", "f16"}))
      ->capture_default_str();
  verb->add_option("--from", flags->from,
                   "What the Modelfile names as the base, such as qwen3:4b; left out, the model's path");
  verb->add_flag("--overwrite", options.overwrite, "Replace the output where it is there already; a folder only where nothing but a model or an adapter lies there");
  verb->callback([flags, &action] { action = [flags] { return run(*flags); }; });
}

}  // namespace nibble::cli
