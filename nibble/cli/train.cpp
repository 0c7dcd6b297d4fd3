#include "nibble/cli/train_flags.h"

#include "nibble/base/error.h"
#include "nibble/cli/adapter_check.h"
#include "nibble/cli/cache_flag.h"
#include "nibble/cli/command.h"
#include "nibble/cli/config_file.h"
#include "nibble/cli/train_print.h"
#include "nibble/io/atomic.h"
#include "nibble/train/checkpoint.h"

#include <fmt/format.h>

#include <atomic>
#include <charconv>
#include <csignal>
#include <cstdlib>
#include <unistd.h>

namespace nibble::cli {
namespace {

std::atomic<int> interrupts = 0;

// The first Ctrl-C ends the run after its step, the second at once.
void on_interrupt(int) {
  if (++interrupts > 1) std::_Exit(exit_interrupted);
}

int finish(const TrainFlags& flags, const TrainResult& result, Progress& progress) {
  const std::string output = flags.options.output.string();
  if (result.end == TrainEnd::dry_run) {
    progress.say("Dry run: nothing was trained or written.");
    return exit_done;
  }
  if (result.end == TrainEnd::interrupted) {
    progress.say(fmt::format("Interrupted after step {}. Saved {}; go on with the same command and --resume auto.", result.step,
                             result.checkpoint.string()));
    return exit_interrupted;
  }
  if (result.end == TrainEnd::stopped_early) progress.say(fmt::format("Stopped early at step {}.", result.step));
  print_result(result, flags.options, progress);
  return exit_done;
}

// Of another run in the output folder.
void say_what_is_there(const TrainOptions& options, Progress& progress) {
  if (!options.resume.empty()) return;
  const auto checkpoint = newest_checkpoint(options.output);
  if (!checkpoint) {
    std::error_code ignored;
    if (!std::filesystem::exists(options.output / "adapter_config.json", ignored)) return;
    return progress.say(fmt::format("Output   {} has an adapter already; this run's takes its place.", options.output.string()));
  }
  progress.say(fmt::format("Output   {} has {} of an earlier run. This one begins anew and takes the place of its adapter; the same options with --resume auto go on from there.",
                           options.output.string(), checkpoint->filename().string()));
}

// A hook for tests: after this step the device says that its memory is out, as where another process takes it. 0: never.
std::uint64_t step_to_run_out_at() {
  constexpr const char* name = "NIBBLE_TEST_OUT_OF_MEMORY";
  const char* given = std::getenv(name);
  if (!given) return 0;
  const std::string_view text = given;
  std::uint64_t step = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), step);
  check<UsageError>(error == std::errc() && end == text.data() + text.size(), name, "\"{}\" is no step; the variable is for tests alone.", text);
  return step;
}

int run(TrainFlags& flags, const std::string& config_text) {
  flags.finish();
  const std::uint64_t runs_out_at = step_to_run_out_at();
  const std::string progress_what = "Loading the model";
  Progress progress(stderr, isatty(STDERR_FILENO) == 1);
  gpu::Device device = flags.device.open();
  const ProductPath path = flags.device.path(device.info());
  progress.say("Reading the data ...");
  const TrainEvents events{
      .reading = [&](double done) { progress.part("Reading", done); },
      .plan = [&](const RunPlan& plan) {
        print_plan(plan, flags.options, progress);
        say_what_is_there(flags.options, progress);
        if (flags.options.dry_run) return;
        // Before, there is nothing to save.
        std::signal(SIGINT, on_interrupt);
        std::signal(SIGTERM, on_interrupt);
        write_file_atomically(flags.options.output / "config.toml", config_text);
      },
      .caching = [&](double done) { progress.part("Quantising into the cache", done); },
      .cached = [&](const CachedModel& cached) { progress.say("Cache    " + cache_text(cached)); },
      .loading = [&](double done) { progress.part(progress_what, done); },
      .step =
          [&](const StepRecord& record) {
            progress.step(record);
            if (record.step == runs_out_at) device.simulate_out_of_memory();
          },
      .referring = [&](double done) { progress.part("Reading the pairs with the base alone", done); },
      .evaluating = [&](double done) { progress.part("Evaluating", done); },
      .evaluation = [&](const EvalRecord& record) { progress.evaluation(record); },
      .saved = {},
      .stop_requested = [] { return interrupts > 0; }};
  const TrainResult result = train(flags.options, device, path, events);
  const int code = finish(flags, result, progress);
  print_profile(device);
  return code;
}

}  // namespace

void add_train(CLI::App& app, Action& action) {
  auto flags = std::make_shared<TrainFlags>();
  CLI::App* verb = app.add_subcommand(
      "train",
      "Fine-tunes LoRA adapters over a model in 4 bits (NF4) on a JSONL file of chats or texts.\n"
      "The output folder becomes a PEFT adapter (the best one by validation loss), with metrics.jsonl, checkpoints and\n"
      "config.toml, which repeats the run: nibble train --config OUTPUT/config.toml.");
  add_config_option(*verb);
  flags->add_to(*verb);
  verb->callback([flags, verb, &action] {
    flags->apply_recipe(*verb);
    std::vector<std::string> left_out = {"resume", "dry-run", "profile"};
    // The adapter that the run begins with says these itself.
    if (!flags->options.init_adapter.empty()) {
      const auto of_new = new_adapter_options();
      left_out.insert(left_out.end(), of_new.begin(), of_new.end());
    }
    const std::string config = config_text(*verb, left_out);
    action = [flags, config] { return run(*flags, config); };
  });
}

}  // namespace nibble::cli
