#include "nibble/train/train.h"

#include "nibble/base/error.h"
#include "nibble/gpu/disk_cache.h"
#include "nibble/io/available_memory.h"
#include "nibble/io/file.h"
#include "nibble/train/fingerprint.h"
#include "nibble/train/placement.h"
#include "nibble/train/run.h"
#include "nibble/weights/gguf_model.h"
#include "nibble/weights/model_folder.h"
#include "nibble/weights/token_rows.h"

#include <fcntl.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <cmath>

namespace nibble {
namespace {

constexpr double most_epochs = 1e6;

void check_options(const TrainOptions& o) {
  check<UsageError>(!o.output.empty(), "--output", "Name the folder that the adapter is written to.");
  check<UsageError>(o.learning_rate >= 0 && std::isfinite(o.learning_rate), "--learning-rate",
                    "{} is no learning rate; give 0 or more.", o.learning_rate);
  check<UsageError>(o.batch_size > 0 && o.gradient_accumulation > 0 && o.max_length > 1, "train",
                    "--batch-size and --gradient-accumulation are at least 1, --max-length at least 2.");
  check<UsageError>((o.epochs > 0 && o.epochs <= most_epochs) || o.max_steps > 0, "--epochs",
                    "{} epochs cannot be trained; give more than 0 and at most {}.", o.epochs, most_epochs);
  check<UsageError>(o.valid_fraction >= 0 && o.valid_fraction < 1, "--valid-fraction", "{} is not in [0, 1).",
                    o.valid_fraction);
  check<UsageError>(o.valid.empty() || o.valid_fraction == 0, "--valid-fraction",
                    "The rows to validate on are given by --valid already; leave one of the two out.");
  check<UsageError>(o.lora.lora_dropout >= 0 && o.lora.lora_dropout < 1, "--lora-dropout", "{} is not in [0, 1).",
                    o.lora.lora_dropout);
  check<UsageError>(o.loss.beta > 0 && std::isfinite(o.loss.beta), "--beta", "{} cannot be taken; give more than 0.", o.loss.beta);
  check<UsageError>(o.loss.focal_gamma >= 0 && std::isfinite(o.loss.focal_gamma), "--focal-gamma",
                    "{} cannot be taken; give 0 or more.", o.loss.focal_gamma);
  check<UsageError>(!o.loss.takes_pairs() || o.loss.focal_gamma == 0, "--focal-gamma",
                    "The labels of pairs are weighed by the loss {}; leave the focal weights out.", name_of(o.loss.kind));
  const bool says_more = o.head_learning_rate || o.head_state || o.head_moments != MomentKind::f32;
  check<UsageError>(o.train_head || !says_more, "--train-head",
                    "What is said of the head holds where it is trained; give --train-head.");
  const bool of_tokens = o.train_tokens_head || o.plain_tokens || o.tokens_learning_rate;
  check<UsageError>(!o.train_tokens.empty() || !of_tokens, "--train-tokens",
                    "What is said of tokens holds where some are trained; name them with --train-tokens.");
  check<UsageError>(o.train_tokens.empty() || !o.train_head, "--train-tokens",
                    "With --train-head every row of the head learns already; leave one of the two out.");
  check<UsageError>(!o.tokens_learning_rate || o.learning_rate > 0, "--tokens-learning-rate",
                    "The tokens' rate follows the schedule of --learning-rate, which must be above 0.");
  check<UsageError>(!o.head_learning_rate || o.learning_rate > 0, "--head-learning-rate",
                    "The head's rate follows the schedule of --learning-rate, which must be above 0.");
  const auto reads_input = [](const data::DataFile& file) { return file.path == "-"; };
  check<UsageError>(std::none_of(o.valid.files().begin(), o.valid.files().end(), reads_input) ||
                        std::none_of(o.data.files().begin(), o.data.files().end(), reads_input),
                    "--valid", "Standard input (-) is the training data already; it can be read once.");
  check<UsageError>(o.early_stopping == 0 || !o.valid.empty() || o.valid_fraction > 0, "--early-stopping",
                    "Without --valid or --valid-fraction there is no loss to stop by.");
}

// The rows that the options add to those which the adapter has, and the tokenizer that knows them.
void add_tokens(LoraAdapter& adapter, const RunData& data, const TrainOptions& options, const Checkpoint& base, const ModelConfig& config) {
  TokensToTrain tokens{.ids = data.tokens.ids, .known = data.tokens.known, .head = options.train_tokens_head};
  for (const text::NewToken& token : data.tokens.added) tokens.fresh.push_back(token.id);
  add_token_rows(adapter, base, config, tokens);
  if (!data.tokenizer_files.empty()) adapter.tokenizer = data.tokenizer_files;
  if (adapter.config.trains_tokens()) check_rows_change(options.stream);
}

std::filesystem::path resume_folder(const TrainOptions& options, const Json& fingerprint) {
  if (options.resume.empty()) return {};
  if (options.resume == "auto") return newest_checkpoint_of(options.output, fingerprint).value_or(std::filesystem::path());
  // The output folder has the first of these too.
  const bool whole = std::filesystem::exists(options.resume / "trainer_state.json") && std::filesystem::exists(options.resume / "optimizer.safetensors");
  check<DataError>(whole, "--resume",
                    "{} is no checkpoint; name a folder checkpoint-N of a run's output, or auto for the newest of --output.", options.resume.string());
  return options.resume;
}

LoraConfig with_dropout(LoraConfig config, const TrainOptions& options) {
  config.lora_dropout = options.lora.lora_dropout;
  return config;
}

// The adapter to begin with: of the checkpoint, of --init-adapter, or a new one.
LoraAdapter first_adapter(const TrainOptions& options, const ModelConfig& config, const std::filesystem::path& checkpoint) {
  const auto& source = checkpoint.empty() ? options.init_adapter : checkpoint;
  if (!source.empty()) {
    LoraAdapter adapter = load_lora_adapter(source, config);
    adapter.config = with_dropout(adapter.config, options);
    check<UsageError>(!adapter.head || options.train_head, source.string(),
                      "The adapter brings a head that was trained; give --train-head to go on with it.");
    check<UsageError>(!adapter.config.trains_tokens() || !options.train_head, source.string(),
                      "The adapter has rows of tokens of its own, which a head that is trained whole would replace; leave out --train-head.");
    return adapter;
  }
  LoraAdapter adapter = make_lora_adapter(config, options.lora);
  check_patterns(options.lora, config.num_layers);
  initialise_lora(adapter, options.seed, options.gaussian_init);
  return adapter;
}

// The modules of a new adapter, checked before rows are read.
void settle_modules(TrainOptions& options, const ModelConfig& config) {
  if (options.usual_targets) options.lora.target_modules = usual_targets(config);
  if (!options.init_adapter.empty()) return;
  try {
    modules_of(options.lora, config.num_layers);
  } catch (const DataError& error) {
    // It names the key that an adapter's file would have, or two.
    std::string option = fmt::format("--{}", place_of(error));
    std::replace(option.begin(), option.end(), '_', '-');
    if (const auto other = option.find(" or "); other != option.npos) option.insert(other + 4, "--");
    fail<UsageError>(option, "{}", data::sentence_of(error));
  }
}

// Rates of their own follow the one schedule.
void set_ratios(TrainOptions& options) {
  if (options.tokens_learning_rate) options.adamw.tokens_ratio = *options.tokens_learning_rate / options.learning_rate;
  if (options.head_learning_rate) options.adamw.head_ratio = *options.head_learning_rate / options.learning_rate;
}

// Training's batches, those of evaluations, and those in which DPO's reference reads the pairs.
BatchRoom room_of_run(const StepFeed& feed, const RunData& data, const TrainOptions& options) {
  BatchRoom room = feed.room();
  for (const ExampleSet* set : {&data.valid, &data.train}) {
    if (set == &data.train && options.loss.kind != TrainLoss::dpo) continue;
    const BatchRoom needed = room_of(*set, evaluation_batches(*set, options.batch_size));
    room = {std::max(room.tokens, needed.tokens), std::max(room.labels, needed.labels)};
  }
  return room;
}

// The device keeps to the limit for as long as the run lasts.
class MemoryLimitGuard {
 public:
  MemoryLimitGuard(gpu::Device& device, std::uint64_t bytes) : device_(device) { device_.limit_memory(bytes); }
  MemoryLimitGuard(const MemoryLimitGuard&) = delete;
  MemoryLimitGuard& operator=(const MemoryLimitGuard&) = delete;
  ~MemoryLimitGuard() { device_.limit_memory(0); }

 private:
  gpu::Device& device_;
};

// Of both moments in a checkpoint.
std::uint64_t moment_bytes(std::uint64_t parameters, MomentKind kind) {
  return kind == MomentKind::f32 ? 8 * parameters : 2 * (parameters + 4 * ((parameters + moment_block - 1) / moment_block));
}

// Before the first step, as days may lie between it and the first time that something is saved. Files are written beside those that they replace.
void check_disk(const RunPlan& plan, const std::filesystem::path& output) {
  const auto [adapter, checkpoint] = saved_bytes(plan);
  check_disk_room(output, adapter + checkpoint, output, "The adapter and a checkpoint");
}

// A new run puts its adapter beside nothing that it reads.
void check_output(const TrainOptions& options) {
  if (!options.resume.empty()) return;
  for (const std::filesystem::path& read : {options.model, options.init_adapter}) {
    std::error_code error;
    check<UsageError>(read.empty() || !std::filesystem::equivalent(options.output, read, error), "--output",
                      "The adapter would be written into {}, which is read; name another folder.", read.string());
  }
}

// While it lives no other run writes to the folder.
class OutputLock {
 public:
  explicit OutputLock(const std::filesystem::path& output) {
    std::error_code error;
    std::filesystem::create_directories(output, error);
    folder_ = FileDescriptor(::open(output.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    // Some file systems know no locks.
    const bool taken = folder_.get() >= 0 && ::flock(folder_.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    check<UsageError>(!taken, output.string(), "Another run writes to this folder; let it end, or name another --output.");
  }

 private:
  FileDescriptor folder_;
};

// The plan goes out when the folder is this run's; a dry run, which takes none, says it first.
std::optional<OutputLock> announce(const RunPlan& plan, const TrainOptions& options, const TrainEvents& events) {
  std::optional<OutputLock> lock;
  if (!options.dry_run) {
    check_disk(plan, options.output);
    lock.emplace(options.output);
  }
  if (events.plan) events.plan(plan);
  if (options.dry_run) check_disk(plan, options.output);
  return lock;
}

std::uint64_t warmup_of(const TrainOptions& options, std::uint64_t steps) {
  return options.warmup_steps > 0 ? options.warmup_steps : static_cast<std::uint64_t>(std::ceil(options.warmup_ratio * static_cast<double>(steps)));
}

std::uint64_t tenth(std::uint64_t steps) { return std::max<std::uint64_t>(1, (steps + 9) / 10); }

}  // namespace

SavedBytes saved_bytes(const RunPlan& plan) {
  const std::uint64_t head = plan.head ? std::uint64_t{plan.config.vocab_size} * plan.config.hidden_size : 0;
  const std::uint64_t adapter = 4 * plan.trainable_parameters;
  return {.adapter = adapter, .checkpoint = adapter + moment_bytes(plan.trainable_parameters - head, plan.moments.kind) +
                                            (plan.head ? moment_bytes(head, plan.head->moments) : 0)};
}

TrainResult train(const TrainOptions& given, gpu::Device& device, ProductPath path, const TrainEvents& events) {
  check_options(given);
  check_output(given);
  TrainOptions options = given;
  const ModelConfig config = read_model_config(options.model);
  options.max_length = std::min(options.max_length, config.max_position_embeddings);
  settle_modules(options, config);
  check<UsageError>(options.loss.kind != TrainLoss::dpo || !options.train_head || config.tie_word_embeddings, "--train-head",
                    "DPO's reference has the base's own head, which this model does not keep beside one that is trained; leave the "
                    "head frozen, or use orpo.");
  const auto data = open_run_data(options, events.reading);
  StepFeed feed(data->train, options);
  const Checkpoint base = open_checkpoint(options.model, config);
  if (!options.init_adapter.empty()) options.lora = with_dropout(read_lora_config(options.init_adapter), options);

  TrainState state{.total_steps = feed.total_steps(), .fingerprint = fingerprint(options, *data, base, config, feed.total_steps())};
  const auto checkpoint = resume_folder(options, state.fingerprint);
  if (!checkpoint.empty()) {
    const Json now = state.fingerprint;
    state = load_train_state(checkpoint);
    check_fingerprint(state.fingerprint, now, checkpoint);
    feed.seek(state.cursor);
    // The best adapter so far lies in the output folder. Where it does not, the next evaluation is the best.
    if (!std::filesystem::exists(options.output / "adapter_model.safetensors")) state.best_eval_loss.reset();
  }
  LoraAdapter adapter = first_adapter(options, config, checkpoint);
  add_tokens(adapter, *data, options, base, config);
  options.lora = adapter.config;
  options.lora.base_model_name_or_path = options.model.string();
  options.lora.saves_head = options.train_head;
  check<UsageError>(options.lora.lora_dropout == 0 || !adapts_experts(config, options.lora), "--lora-dropout",
                    "Adapters of experts have no dropout; leave it at 0, or adapt attention's projections alone.");
  set_ratios(options);
  const BatchRoom room = room_of_run(feed, *data, options);
  const MemoryBudget budget = memory_budget(options, device.info(), available_memory());
  const StepRates usual = usual_rates(device.info(), path, room.tokens);
  const StepRates rates = options.dry_run ? measured_rates(device, path, config, room.tokens, gpu::default_cache_dir()) : usual;
  const auto placed = [&](const MemoryBudget& by) { return place(options, device, config, path, room, by, usual, rates); };
  const Placement placement = on_its_disk(options.stream, budget, placed);
  const MemoryLimitGuard guard(device, budget.promised ? budget.bytes : 0);

  RunPlan plan{.gpu = device.info(), .path = path, .config = config, .forms = data->train.file->form_names(),
               .counts = data->train.file->counts(), .files = data->train.file->files(), .drawn = feed.drawn(), .train_examples = data->train.examples.size(),
               .valid_examples = data->valid.examples.size(), .train_tokens = data->train.tokens(),
               .trained_tokens = data->train.trained_tokens(), .trainable_parameters = trainable_params(config, options.lora),
               .lora = options.lora, .tokens = data->tokens, .head = placement.head, .moments = placement.moments, .model = placement.model, .budget = budget,
               .room = room, .memory = placement.memory, .pass_seconds = placement.pass_seconds,
               .extra_seconds = placement.extra_seconds, .measured = rates.measured,
               .total_steps = feed.total_steps(), .first_step = state.step,
               .warmup_steps = warmup_of(options, feed.total_steps()),
               .eval_every = options.eval_every.value_or(tenth(feed.total_steps())),
               .save_every = options.save_every.value_or(tenth(feed.total_steps()))};
  for (const data::Share& share : feed.shares()) plan.train_rows.push_back(share.examples);
  const auto lock = announce(plan, options, events);
  if (options.dry_run) return {.end = TrainEnd::dry_run, .planned = plan.memory};
  return TrainingRun({.options = options, .plan = plan, .data = *data, .feed = feed, .device = device, .model = placement.model,
                      .adapter = adapter, .checkpoint = checkpoint, .events = events},
                     state)
      .run();
}

}  // namespace nibble
