#include "nibble/base/error.h"
#include "nibble/cli/cache_flag.h"
#include "nibble/cli/command.h"
#include "nibble/cli/device_flags.h"
#include "nibble/cli/eval_labels.h"
#include "nibble/cli/eval_pairs.h"
#include "nibble/cli/residency_flags.h"
#include "nibble/cli/row_flags.h"
#include "nibble/cli/train_print.h"
#include "nibble/cli/usage.h"
#include "nibble/io/available_memory.h"
#include "nibble/io/json.h"
#include "nibble/model/model.h"
#include "nibble/report/progress.h"
#include "nibble/train/evaluate.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cmath>

namespace nibble::cli {
namespace {

struct EvalFlags {
  RowFlags data;
  TrainOptions options;  // of which model, data and the rows' options count
  std::string adapter, loss = "sft", train_on = "assistant", overflow = "error", form = "auto", vram_limit, ram_limit;
  bool rows = false, json = false;
  LabelFlags labels;
  DeviceFlags device;
  ResidencyFlags residency{.name = "auto"};
};

// `set` is what was evaluated.
void print_rows(const Evaluation& result, const ExampleSet& set) {
  const bool several = set.file->files().size() > 1;
  for (std::size_t i = 0; i < result.rows.size(); ++i) {
    const RowLoss& row = result.rows[i];
    Json line{{"row", row.row}, {"loss", row.loss}, {"tokens", row.tokens}, {"correct", row.correct}};
    if (several) line["file"] = set.file->file_name(set.examples[i]);
    fmt::print("{}\n", write_json_line(line));
  }
}

void print_summary(const Evaluation& result, std::uint64_t bad_rows, bool json) {
  if (json) {
    fmt::print("{}\n", write_json_line({{"eval_loss", result.loss}, {"perplexity", std::exp(result.loss)},
                                        {"accuracy", result.accuracy}, {"rows", result.rows.size()}, {"bad_rows", bad_rows}, {"tokens", result.tokens}}));
  } else {
    fmt::print("eval_loss {:.6f}  perplexity {:.4f}  accuracy {:.2f}%  ({} rows, {} trained tokens)\n", result.loss,
               std::exp(result.loss), 100 * result.accuracy, grouped(result.rows.size()), grouped(result.tokens));
  }
}

void print_bad_rows(std::uint64_t count) {
  if (count > 0) fmt::print("left out: {} bad row{}\n", grouped(count), count == 1 ? "" : "s");
}

void finish(EvalFlags& flags) {
  TrainOptions& options = flags.options;
  options.loss.kind = train_loss_of(flags.loss);
  options.train_on = data::train_on_of(flags.train_on);
  options.overflow = data::overflow_of(flags.overflow);
  if (flags.form != "auto") options.form = data::row_form_of(flags.form);
  options.data = flags.data.unweighted_files();
  options.init_adapter = flags.adapter;  // whose tokenizer counts
  options.map = flags.data.columns();
  options.residency = flags.residency.choice();
  options.stream_layers = flags.residency.layers;
  options.stream = flags.residency.stream();
  if (!flags.vram_limit.empty()) options.vram_limit = memory_limit_of(flags.vram_limit);
  if (!flags.ram_limit.empty()) options.ram_limit = memory_limit_of(flags.ram_limit, "--ram-limit");
  options.lora = flags.adapter.empty() ? LoraConfig{.target_modules = {}} : read_lora_config(flags.adapter);
  flags.labels.check(options);
}

// What is planned, where a limit holds or not all of the weights lie on the device.
void say_plan(const Placement& placement, const MemoryBudget& budget, const ModelConfig& config, Progress& progress) {
  const ModelOptions& model = placement.model;
  const std::uint32_t streamed = count_of(model.residency, config.num_layers, Residency::streamed);
  if (!budget.promised && !budget.ram_promised && streamed == 0 && !model.stream.embedding && !model.stream.head) return;
  const std::uint64_t host = placement.memory.host_weights;
  progress.say(fmt::format("Memory   {} on the GPU{}: {} of {} layers streamed{}{}, logits of {} rows at a time{}", human_bytes(placement.memory.total()),
                           budget_text(budget), streamed, config.num_layers, describe_tables(model.stream, config.tie_word_embeddings),
                           model.one_decoded_room ? ", decoded into one room" : "", model.head_chunk,
                           host > 0 ? fmt::format("; weights of {} in host memory", human_bytes(host)) : ""));
  if (const std::string disk = scratch_text(placement.memory, model); !disk.empty()) progress.say("Disk     " + disk);
}

int run(EvalFlags flags) {
  finish(flags);
  Progress progress(stderr, isatty(STDERR_FILENO) == 1);
  gpu::Device device = flags.device.open();
  const ProductPath path = flags.device.path(device.info());
  const ModelConfig config = read_model_config(flags.options.model);
  flags.options.max_length = std::min(flags.options.max_length, config.max_position_embeddings);
  std::unique_ptr<RunData> data;
  std::optional<LabelledData> labelled;
  BatchRoom room;
  if (flags.labels.used()) {
    labelled.emplace(flags.labels, flags.options);
    room = labelled->room(flags.options.batch_size);
  } else {
    data = open_run_data(flags.options, [&](double done) { progress.part("Reading the data", done); });
    room = room_of(data->train, evaluation_batches(data->train, flags.options.batch_size));
  }
  const MemoryBudget budget = memory_budget(flags.options, device.info(), available_memory());
  const Placement placement = on_its_disk(flags.options.stream, budget,
                                          [&](const MemoryBudget& by) { return place_evaluation(flags.options, device, config, path, room, by); });
  say_plan(placement, budget, config, progress);
  if (budget.promised) device.limit_memory(budget.bytes);
  const ModelState state =
      ModelState::load(device, through_cache(flags.options.model, flags.options.cache_dir, progress),
                       {.path = path, .adapter = flags.adapter, .trainable = false,
                        .residency = placement.model.residency, .stream = placement.model.stream,
                        .progress = [&](double done) { progress.part("Loading the model", done); }});
  Model model(state, placement.model);
  const auto show = [&](double done) { progress.part("Evaluating", done); };
  if (labelled) {
    classify(model, *labelled, flags.labels, flags.options.batch_size, {.rows = flags.rows, .json = flags.json}, show);
  } else if (flags.options.loss.takes_pairs()) {
    evaluate_answers(model, data->train, flags.options, {.rows = flags.rows, .json = flags.json}, progress);
  } else {
    const Evaluation result = evaluate(model, data->train, flags.options.batch_size, show);
    check<Diverged>(std::isfinite(result.loss), flags.options.data.text(), "The loss is {}.", result.loss);
    if (flags.rows) print_rows(result, data->train);
    print_summary(result, data->train.file->counts().bad_rows, flags.json);
  }
  if (data && !flags.json) print_bad_rows(data->train.file->counts().bad_rows);
  if (budget.promised) {
    progress.say(fmt::format("Memory   {} at the peak, {} planned", human_bytes(device.memory().peak), human_bytes(placement.memory.total())));
  }
  print_profile(device);
  return exit_done;
}

}  // namespace

void add_eval(CLI::App& app, Action& action) {
  auto flags = std::make_shared<EvalFlags>();
  CLI::App* verb = app.add_subcommand(
      "eval", "Loss, perplexity and token accuracy of a model, with or without an adapter, on rows.\n"
              "With --labels: how well it tells labels apart. With --loss dpo or orpo: how well it tells chosen answers\n"
              "from rejected ones.");
  verb->add_option("--model", flags->options.model, "Model folder or GGUF file")->required();
  add_cache_option(*verb, flags->options.cache_dir);
  verb->add_option("--adapter", flags->adapter, "PEFT adapter folder; left out, the base is evaluated");
  flags->data.add_data(*verb, "Rows, JSONL or CSV: one file, several, or - (standard input)")->required();
  verb->add_flag("--rows", flags->rows,
                 "Also print a JSON line a row: line of the file, loss, trained tokens, right ones; or label, prediction and scores; "
                 "or rewards and log-probabilities");
  verb->add_flag("--json", flags->json, "Print the summary as JSON");
  verb->add_option("--batch-size", flags->options.batch_size, "Rows of one pass")->capture_default_str()->check(CLI::Range(1u, 65536u));
  verb->add_option("--max-length", flags->options.max_length, "Longest row in tokens")->capture_default_str()->check(CLI::Range(2u, 1u << 20));
  verb->add_option("--overflow", flags->overflow, "Longer rows: error, drop, cut or split")
      ->check(CLI::IsMember({"error", "drop", "cut", "split"}))->capture_default_str();
  verb->add_option("--loss", flags->loss, "sft: of the trained tokens; dpo, orpo: of pairs of answers")
      ->check(CLI::IsMember({"sft", "dpo", "orpo"}))->capture_default_str();
  verb->add_option("--beta", flags->options.loss.beta, "DPO's beta, ORPO's lambda")
      ->capture_default_str()->check(above_zero());
  verb->add_option("--train-on", flags->train_on, "What the loss counts: assistant, last or all")
      ->check(CLI::IsMember({"assistant", "last", "all"}))->capture_default_str();
  add_think_option(*verb, flags->options.think);
  add_system_option(*verb, flags->options.system);
  flags->data.add_map(*verb);
  verb->add_option("--format", flags->form, "Form of the rows; auto detects it")->capture_default_str();
  verb->add_flag("--skip-bad-rows", flags->options.skip_bad_rows, "Leave out rows that cannot be used");
  verb->add_option("--vram-limit", flags->vram_limit,
                   "GPU memory that may be taken, as 2GiB, 2048MiB, 8GB or 80% of the card's. What the options below leave open is chosen\n"
                   "to stay within it at the least cost of time. Not given: nine tenths of the card's");
  verb->add_option("--ram-limit", flags->ram_limit, "Host memory that may be taken for weights and what is on its way to the GPU, likewise; streamed layers lie on a disk\nwhere it is too small for them.\n"
                                                    "Not given: nine tenths of what is available");
  verb->add_option("--head-chunk", flags->options.head_chunk, "Rows of logits at a time");
  flags->residency.add_to(*verb, ResidencyFlags::Cached::left_out);
  flags->labels.add_to(*verb);
  flags->device.add_to(*verb, DeviceFlags::AdapterOption::names_lora);
  verb->callback([flags, &action] { action = [flags] { return run(*flags); }; });
}

}  // namespace nibble::cli
