#include "nibble/base/error.h"
#include "nibble/cli/cache_flag.h"
#include "nibble/cli/command.h"
#include "nibble/cli/device_flags.h"
#include "nibble/cli/eval_labels.h"
#include "nibble/cli/eval_pairs.h"
#include "nibble/cli/residency_flags.h"
#include "nibble/cli/row_flags.h"
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
  std::string adapter, loss = "sft", train_on = "assistant", overflow = "error", form = "auto";
  bool rows = false, json = false;
  LabelFlags labels;
  DeviceFlags device;
  ResidencyFlags residency;
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

void print_summary(const Evaluation& result, bool json) {
  if (json) {
    fmt::print("{}\n", write_json_line({{"eval_loss", result.loss}, {"perplexity", std::exp(result.loss)},
                                        {"accuracy", result.accuracy}, {"rows", result.rows.size()}, {"tokens", result.tokens}}));
  } else {
    fmt::print("eval_loss {:.6f}  perplexity {:.4f}  accuracy {:.2f}%  ({} rows, {} trained tokens)\n", result.loss,
               std::exp(result.loss), 100 * result.accuracy, grouped(result.rows.size()), grouped(result.tokens));
  }
}

int run(EvalFlags flags) {
  flags.options.loss.kind = train_loss_of(flags.loss);
  flags.options.train_on = data::train_on_of(flags.train_on);
  flags.options.overflow = data::overflow_of(flags.overflow);
  if (flags.form != "auto") flags.options.form = data::row_form_of(flags.form);
  flags.options.data = flags.data.unweighted_files();
  flags.options.init_adapter = flags.adapter;  // whose tokenizer counts
  flags.options.map = flags.data.columns();
  flags.labels.check(flags.options);
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
    data = open_run_data(flags.options);
    room = room_of(data->train, evaluation_batches(data->train, flags.options.batch_size));
  }
  const ModelState state =
      ModelState::load(device, through_cache(flags.options.model, flags.options.cache_dir, progress),
                       {.path = path, .adapter = flags.adapter, .trainable = false,
                        .residency = flags.residency.of(config.num_layers), .stream = flags.residency.stream(),
                        .progress = [&](double done) { progress.part("Loading the model", done); }});
  Model model(state, {.max_tokens = room.tokens, .max_labels = room.labels, .head_chunk = flags.options.head_chunk,
                      .trainable = false});
  const auto show = [&](double done) { progress.part("Evaluating", done); };
  if (labelled) {
    classify(model, *labelled, flags.labels, flags.options.batch_size, {.rows = flags.rows, .json = flags.json}, show);
  } else if (flags.options.loss.takes_pairs()) {
    evaluate_answers(model, data->train, flags.options, {.rows = flags.rows, .json = flags.json}, progress);
  } else {
    const Evaluation result = evaluate(model, data->train, flags.options.batch_size, show);
    check<Diverged>(std::isfinite(result.loss), flags.options.data.text(), "The loss is {}.", result.loss);
    if (flags.rows) print_rows(result, data->train);
    print_summary(result, flags.json);
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
      ->capture_default_str()->check(CLI::PositiveNumber);
  verb->add_option("--train-on", flags->train_on, "What the loss counts: assistant, last or all")
      ->check(CLI::IsMember({"assistant", "last", "all"}))->capture_default_str();
  add_think_option(*verb, flags->options.think);
  add_system_option(*verb, flags->options.system);
  flags->data.add_map(*verb);
  verb->add_option("--format", flags->form, "Form of the rows; auto detects it")->capture_default_str();
  verb->add_flag("--skip-bad-rows", flags->options.skip_bad_rows, "Leave out rows that cannot be used");
  verb->add_option("--head-chunk", flags->options.head_chunk, "Rows of logits at a time");
  flags->residency.add_to(*verb, ResidencyFlags::Cached::left_out);
  flags->labels.add_to(*verb);
  flags->device.add_to(*verb, DeviceFlags::AdapterOption::names_lora);
  verb->callback([flags, &action] { action = [flags] { return run(*flags); }; });
}

}  // namespace nibble::cli
