#include "nibble/cli/info.h"

#include "nibble/base/error.h"
#include "nibble/cli/command.h"
#include "nibble/cli/terminal.h"

#include <fmt/format.h>

namespace nibble::cli {
namespace {

int run(const InfoFlags& flags) {
  check<UsageError>(!flags.model.empty() || !flags.adapter.empty() || !flags.data.data.empty(), "info",
                    "Give --model, --adapter, or --data with --model.");
  check<UsageError>(flags.data.data.empty() || flags.adapter.empty(), "info", "Give either --data or --adapter.");
  if (!flags.data.data.empty()) {
    check<UsageError>(!flags.model.empty(), "info",
                      "--data needs --model, whose tokenizer and template make the tokens.");
    info_data(flags);
  } else if (!flags.adapter.empty()) {
    info_adapter(flags);
  } else {
    info_model(flags);
  }
  return exit_done;
}

void add_data_options(CLI::App& verb, InfoFlags& flags) {
  auto* group = verb.add_option_group("With --data");
  group->add_option("--rows", flags.rows, "Rows to show")->capture_default_str();
  group->add_option("--max-length", flags.max_length, "Count rows of more tokens than this")
      ->capture_default_str()->check(CLI::Range(2u, 1u << 20));
  group->add_option("--train-on", flags.train_on,
                    "What the loss counts: assistant (every answer), last (the last answer), all")
      ->check(CLI::IsMember({"assistant", "last", "all"}))->capture_default_str();
  add_think_option(*group, flags.think);
  add_system_option(*group, flags.system);
  flags.data.add_map(*group);
  group->add_option("--format", flags.format,
                    "Form of the rows: auto, messages, conversations, prompt-completion, instruction-output, "
                    "instruction-response, preference, classification, text")
      ->capture_default_str();
  group->add_flag("--skip-bad-rows", flags.skip_bad_rows,
                  "Count rows that cannot be used instead of stopping at the first");
  group->add_option("--color", flags.color, "Colours: auto (in a terminal), always, never")
      ->check(CLI::IsMember({"auto", "always", "never"}))->capture_default_str();
}

}  // namespace

void print_fact(std::string_view what, std::string_view value) { fmt::print("{:<17} {}\n", what, printable(value)); }

void add_info(CLI::App& app, Action& action) {
  auto flags = std::make_shared<InfoFlags>();
  CLI::App* verb = app.add_subcommand(
      "info", "Looks into a model, an adapter, or the rows of a data file.\n"
              "--model alone: sizes, tokens and the memory that training takes. --adapter: rank, targets and norms; with\n"
              "--model also whether it fits. --data with --model: how rows become tokens and which of them are trained.");
  verb->add_option("--model", flags->model, "Model folder or GGUF file");
  verb->add_option("--adapter", flags->adapter, "PEFT adapter folder");
  flags->data.add_data(*verb, "Rows, JSONL or CSV: one file, several (with weights, as training takes them), or - (standard input)");
  add_data_options(*verb, *flags);
  flags->device.add_to(*verb, DeviceFlags::AdapterOption::names_lora);
  verb->add_flag("--json", flags->json, "Print as JSON");
  verb->callback([flags, &action] { action = [flags] { return run(*flags); }; });
}

}  // namespace nibble::cli
