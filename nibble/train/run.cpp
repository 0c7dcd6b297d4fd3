#include "nibble/train/run.h"

#include "nibble/base/error.h"
#include "nibble/io/atomic.h"
#include "nibble/kernels/nonfinite.h"
#include "nibble/report/log_history.h"
#include "nibble/train/preference.h"

#include <cmath>

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

// Steps whose speed is averaged.
constexpr std::size_t speed_window = 20;

// The model itself, or what the cache has of it.
std::filesystem::path folder_to_load(const RunSetup& setup) {
  if (setup.options.cache_dir.empty()) return setup.options.model;
  const CachedModel cached = cached_model(setup.options.model, setup.options.cache_dir, setup.events.caching);
  if (setup.events.cached) setup.events.cached(cached);
  return cached.folder;
}

ModelState load(const RunSetup& setup) {
  ModelState state = ModelState::load(setup.device, folder_to_load(setup),
                                      {.path = setup.plan.path, .moments = setup.plan.moments, .rows_change = setup.adapter.config.trains_tokens(), .base_head = !setup.plan.head,
                                       .residency = setup.model.residency, .stream = setup.model.stream, .progress = setup.events.loading});
  state.set_lora(setup.adapter, true);
  if (setup.plan.head) state.train_head(*setup.plan.head);
  return state;
}

TrainerOptions trainer_options(const RunSetup& setup) {
  return {.model = setup.model, .adamw = setup.options.adamw, .loss = setup.options.loss, .lora_dropout = setup.options.lora.lora_dropout,
          .neftune_alpha = setup.options.neftune_alpha, .seed = setup.options.seed};
}

std::vector<TokenStream> streams_of(const std::vector<data::Batch>& batches) {
  std::vector<TokenStream> streams;
  for (const data::Batch& batch : batches) streams.push_back(stream_of(batch));
  return streams;
}

Schedule schedule_of(const RunSetup& setup) {
  return {.kind = setup.options.lr_scheduler, .learning_rate = setup.options.learning_rate,
          .warmup_steps = setup.plan.warmup_steps, .total_steps = setup.plan.total_steps,
          .min_lr_ratio = setup.options.min_lr_ratio};
}

}  // namespace

TrainingRun::TrainingRun(const RunSetup& setup, TrainState state)
    : setup_(setup),
      state_(std::move(state)),
      schedule_(schedule_of(setup)),
      model_state_(load(setup)),
      trainer_(model_state_, trainer_options(setup)),
      metrics_(setup.options.output / "metrics.jsonl", state_.step) {
  if (!setup.checkpoint.empty()) load_optimizer(setup.checkpoint, model_state_);
  model_state_.step = state_.step;
  result_.planned = setup.plan.memory;
}

TrainingRun::StepInput TrainingRun::next_input() {
  StepInput input{.batches = setup_.feed.next()};
  input.cursor = setup_.feed.cursor();
  input.epoch = setup_.feed.epoch();
  return input;
}

TrainResult TrainingRun::run() {
  try {
    loop();
  } catch (const OutOfDeviceMemory& error) {
    constexpr std::string_view advice = "Take less memory, as by --vram-limit or a smaller --batch-size, and go on with --resume auto.";
    fail<OutOfDeviceMemory>("train", "{} {} {}", error.what(), save_what_was_trained(), advice);
  } catch (const DataError& error) {
    if (state_.step == first_step_) throw;
    fail<DataError>("train", "{} {}", error.what(), save_what_was_trained());
  }
  result_.step = state_.step;
  result_.steps_done = state_.step - first_step_;
  result_.best_eval_loss = state_.best_eval_loss;
  result_.best_step = state_.best_step;
  result_.peak_bytes = setup_.device.memory().peak;
  result_.driver_bytes = setup_.device.driver_memory();
  return result_;
}

void TrainingRun::loop() {
  begin_ = Clock::now();
  first_step_ = state_.step;
  recent_.emplace_back(begin_, state_.tokens);
  if (!early_stop()) {
    find_reference();
    // Memory that ran out may have kept the run from the evaluation after its last step.
    if (first_step_ > 0 && due(setup_.plan.eval_every, first_step_)) evaluate_now();
  }
  const bool stopped = early_stop();
  if (stopped) result_.end = TrainEnd::stopped_early;
  while (!stopped && state_.step < state_.total_steps) {
    step();
    const bool last = state_.step == state_.total_steps;
    // Before saving, so that the last checkpoint knows of it.
    if (last || due(setup_.plan.eval_every, state_.step)) evaluate_now();
    if (due(setup_.plan.save_every, state_.step)) save_now();
    if (early_stop()) {
      result_.end = TrainEnd::stopped_early;
      break;
    }
    if (!last && begun_.empty() && stop_requested()) {
      result_.end = TrainEnd::interrupted;
      break;
    }
  }
  if (result_.end != TrainEnd::interrupted) evaluate_now();
  save_now();
  if (!state_.best_eval_loss) save_output();
  save_trainer_state();
}

void TrainingRun::begin_step() {
  const std::uint64_t done = state_.step + begun_.size();  // when it takes place
  BegunStep begun{.input = ahead_ ? std::move(*ahead_) : next_input(), .learning_rate = learning_rate(schedule_, done)};
  ahead_.reset();
  trainer_.begin_step(streams_of(begun.input.batches), begun.learning_rate);
  begun_.push_back(std::move(begun));
}

bool TrainingRun::pauses_after(std::uint64_t step) const {
  return step >= state_.total_steps || due(setup_.plan.eval_every, step) || due(setup_.plan.save_every, step) || stop_requested();
}

void TrainingRun::step() {
  if (begun_.empty()) begin_step();
  if (trainer_.steps_ahead() > 0 && !pauses_after(state_.step + 1)) begin_step();
  if (!ahead_ && state_.step + begun_.size() < state_.total_steps) ahead_ = next_input();
  end_step();
}

void TrainingRun::end_step() {
  const StepResult result = trainer_.end_step();
  const auto [input, rate] = std::move(begun_.front());
  begun_.pop_front();
  if (model_state_.step == state_.step) fail_diverged(input, result);
  state_.step = model_state_.step;
  for (const data::Batch& batch : input.batches) {
    state_.tokens += batch.tokens.size();
    rows_ += batch.rows.size();
  }
  state_.cursor = input.cursor;
  state_.epoch = input.epoch;
  report_step(input, result, rate);
}

void TrainingRun::report_step(const StepInput& input, const StepResult& result, double rate) {
  recent_.emplace_back(Clock::now(), state_.tokens);
  if (recent_.size() > speed_window + 1) recent_.pop_front();
  const double seconds = std::chrono::duration<double>(recent_.back().first - recent_.front().first).count();
  const auto tokens = static_cast<double>(recent_.back().second - recent_.front().second);
  const double per_step = seconds / static_cast<double>(recent_.size() - 1);
  const StepRecord record{.step = state_.step, .total_steps = state_.total_steps, .epoch = input.epoch, .loss = result.loss,
                          .grad_norm = result.grad_norm, .learning_rate = rate, .tokens = state_.tokens,
                          .tokens_per_second = seconds > 0 ? tokens / seconds : 0,
                          .memory_bytes = setup_.device.memory().peak,
                          .seconds_left = per_step * static_cast<double>(state_.total_steps - state_.step),
                          .preference = result.preference};
  result_.last_loss = result.loss;
  metrics_.write(record);
  if (setup_.events.step) setup_.events.step(record);
}

std::string TrainingRun::save_what_was_trained() {
  try {
    if (!trainer_.update_in_doubt() && state_.step > 0) {
      while (!begun_.empty()) end_step();
      save_now();
      if (!state_.best_eval_loss) save_output();
      return fmt::format("What was trained up to step {} is saved in {}.", state_.step, result_.checkpoint.string());
    }
  } catch (const Error&) {
    // The device or the disk gives no more; what was saved before stays. There may be room for the adapter alone.
    if (const auto saved = save_adapter_alone()) return *saved;
  }
  return last_checkpoint();
}

std::optional<std::string> TrainingRun::save_adapter_alone() {
  if (state_.best_eval_loss || !begun_.empty()) return {};
  try {
    save_output();
    return fmt::format("The adapter as of step {} is in {}, without what a run goes on from. {}", state_.step, setup_.options.output.string(), last_checkpoint());
  } catch (const Error&) {
    return {};
  }
}

void TrainingRun::fail_diverged(const StepInput& input, const StepResult& result) {
  // The gradients may be those of the step after it.
  trainer_.find_gradients(streams_of(input.batches));
  for (const data::Batch& batch : input.batches) {
    gpu::Recorder recorder(setup_.device);
    const DeviceStream stream = trainer_.model().upload(recorder, stream_of(batch));
    const auto place = trainer_.model().find_nonfinite(stream);
    if (!place) continue;
    std::size_t segment = 0;
    for (std::uint32_t token = 1; token <= place->token; ++token) segment += batch.position[token] == 0;
    const std::size_t example = batch.sides.empty() ? segment : segment / 2;
    fail<Diverged>("train", "Step {}: {} is not finite, first in row {} of {}; lower --learning-rate or look at that row. "
                   "{}", state_.step + 1, place->where, batch.rows.at(example), batch.files.at(example), last_checkpoint());
  }
  fail<Diverged>("train", "Step {}: the loss is {} and the gradient norm {}{}; lower --learning-rate. {}", state_.step + 1,
                 result.loss, result.grad_norm, describe_nonfinite_gradient(), last_checkpoint());
}

std::string TrainingRun::describe_nonfinite_gradient() const {
  const auto first_of = [&](const Tensor& gradients) {
    const Tensor found = setup_.device.tensor(DType::u32, {1}, "first non-finite");
    gpu::Recorder recorder(setup_.device);
    record(recorder, NonFinite{.x = gradients, .index = found});
    recorder.submit();
    return setup_.device.read<std::uint32_t>(found)[0];
  };
  const TrainedHead* head = model_state_.trained_head();
  const std::string in_head = head ? head->describe_element(first_of(head->gradient())) : "";
  if (!in_head.empty()) return in_head;
  if (const TrainedTokens* tokens = model_state_.trained_tokens()) {
    for (const Tensor& rows : tokens->gradients()) {
      if (first_of(rows) != UINT32_MAX) return " in the gradient of the trained tokens' rows";
    }
  }
  const LoraWeights& lora = *model_state_.lora_mirror().on_device();
  return describe_element(lora, first_of(lora.grads));
}

bool TrainingRun::stop_requested() const { return setup_.events.stop_requested && setup_.events.stop_requested(); }

bool TrainingRun::early_stop() const {
  return setup_.options.early_stopping > 0 && state_.evaluations_without_gain >= setup_.options.early_stopping;
}

std::string TrainingRun::last_checkpoint() const {
  const auto& last = saved_step_ ? result_.checkpoint : setup_.checkpoint;
  return last.empty() ? "There is no checkpoint yet." : fmt::format("The last checkpoint is {}.", last.string());
}

void TrainingRun::find_reference() {
  if (setup_.options.loss.kind != TrainLoss::dpo) return;
  for (ExampleSet* set : {&setup_.data.train, &setup_.data.valid}) {
    if (set->examples.empty()) continue;
    set->reference = reference_logps(trainer_.model(), *set, setup_.options.batch_size, setup_.events.referring);
  }
  recent_.back().first = Clock::now();
}

EvalRecord TrainingRun::evaluation() {
  const TrainOptions& options = setup_.options;
  if (options.loss.takes_pairs()) {
    const PairEvaluation pairs = evaluate_pairs(trainer_.model(), setup_.data.valid, options.loss, options.batch_size, setup_.events.evaluating);
    return {.step = state_.step, .eval_loss = pairs.loss, .tokens = pairs.tokens, .preference = pairs.mean};
  }
  const Evaluation labels = evaluate(trainer_.model(), setup_.data.valid, options.batch_size, setup_.events.evaluating);
  return {.step = state_.step, .eval_loss = labels.loss, .accuracy = labels.accuracy, .tokens = labels.tokens};
}

void TrainingRun::evaluate_now() {
  if (setup_.data.valid.examples.empty() || state_.evaluated_step == state_.step) return;
  EvalRecord record = evaluation();
  check<Diverged>(std::isfinite(record.eval_loss), "train", "Step {}: the validation loss is {}; lower --learning-rate. {}",
                  state_.step, record.eval_loss, last_checkpoint());
  record.best = !state_.best_eval_loss || record.eval_loss < *state_.best_eval_loss;
  // Where memory runs out here, the evaluation does not count and is made again by the run that goes on.
  if (record.best) save_output();
  metrics_.write(record);
  state_.evaluated_step = state_.step;
  if (record.best) {
    state_.best_eval_loss = record.eval_loss;
    state_.best_step = state_.step;
    state_.evaluations_without_gain = 0;
  } else {
    state_.evaluations_without_gain += 1;
  }
  if (setup_.events.evaluation) setup_.events.evaluation(record);
  // The pause does not count in the speed.
  recent_.clear();
  recent_.emplace_back(Clock::now(), state_.tokens);
}

LoraAdapter TrainingRun::adapter() const {
  LoraAdapter adapter = model_state_.lora_adapter();
  adapter.config = setup_.options.lora;
  adapter.tokenizer = setup_.adapter.tokenizer;
  return adapter;
}

void TrainingRun::save_output() { save_lora_adapter(setup_.options.output, adapter()); }

Json TrainingRun::trainer_keys() const {
  const TrainOptions& options = setup_.options;
  const double part = static_cast<double>(state_.step) / static_cast<double>(state_.total_steps);
  const double epochs = options.max_steps > 0 && part > 0 ? state_.epoch / part : options.epochs;
  return {{"eval_steps", setup_.plan.eval_every},
          {"is_hyper_param_search", false},
          {"log_history", log_history(setup_.options.output / "metrics.jsonl", state_.step)},
          {"logging_steps", 1},
          {"num_train_epochs", static_cast<std::uint64_t>(std::ceil(epochs - 1e-9))},
          {"save_steps", setup_.plan.save_every},
          {"stateful_callbacks", Json::object()},
          {"total_flos", 0},
          {"train_batch_size", options.batch_size},
          {"trial_name", nullptr},
          {"trial_params", nullptr}};
}

// As Trainer leaves it beside the adapter, with a last entry about the whole. Times are of this process.
void TrainingRun::save_trainer_state() {
  Json keys = trainer_keys();
  double sum = 0;
  std::uint64_t steps = 0;
  for (const Json& entry : keys["log_history"]) {
    if (!entry.contains("loss") || !entry["loss"].is_number()) continue;
    sum += entry["loss"].get<double>();
    ++steps;
  }
  const double seconds = std::max(1e-9, std::chrono::duration<double>(Clock::now() - begin_).count());
  keys["log_history"].push_back({{"epoch", state_.epoch},
                                 {"step", state_.step},
                                 {"total_flos", 0},
                                 {"train_loss", steps > 0 ? sum / static_cast<double>(steps) : 0},
                                 {"train_runtime", seconds},
                                 {"train_samples_per_second", static_cast<double>(rows_) / seconds},
                                 {"train_steps_per_second", static_cast<double>(state_.step - first_step_) / seconds}});
  write_file_atomically(setup_.options.output / "trainer_state.json",
                        write_json(trainer_state(state_, setup_.options.output, keys)) + "\n");
}

void TrainingRun::save_now() {
  if (saved_step_ == state_.step) return;
  save_checkpoint(setup_.options.output, state_, model_state_, adapter(), trainer_keys(), setup_.options.keep_checkpoints);
  saved_step_ = state_.step;
  result_.checkpoint = setup_.options.output / fmt::format("checkpoint-{}", state_.step);
  if (setup_.events.saved) setup_.events.saved(result_.checkpoint);
}

}  // namespace nibble
