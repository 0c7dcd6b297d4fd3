#include "nibble/train/run.h"

#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "nibble/kernels/nonfinite.h"
#include "nibble/kernels/sum.h"

#include <cmath>
#include <cstring>

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

// Steps whose speed is averaged.
constexpr std::size_t speed_window = 20;

DeviceWeights load(const RunSetup& setup) {
  return load_weights(setup.device, setup.base, setup.plan.config,
                      {.dense_dtype = operand_dtype(setup.plan.path), .progress = setup.events.loading});
}

Schedule schedule_of(const RunSetup& setup) {
  return {.kind = setup.options.lr_scheduler, .learning_rate = setup.options.learning_rate,
          .warmup_steps = setup.plan.warmup_steps, .total_steps = setup.plan.total_steps,
          .min_lr_ratio = setup.options.min_lr_ratio};
}

std::uint32_t dropout_seed(std::uint64_t seed, std::uint64_t batch) {
  return philox4x32({static_cast<std::uint32_t>(batch), static_cast<std::uint32_t>(batch >> 32), 0x64726f70, 0},
                    {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)})[0];
}

}  // namespace

TrainingRun::TrainingRun(const RunSetup& setup, TrainState state)
    : setup_(setup),
      state_(std::move(state)),
      schedule_(schedule_of(setup)),
      weights_(load(setup)),
      lora_(upload_lora(setup.device, setup.plan.config, setup.adapter, true)),
      model_(setup.device, setup.plan.config, weights_, &lora_, setup.model),
      optimizer_(setup.device, setup.options.adamw),
      metrics_(setup.options.output / "metrics.jsonl", state_.step),
      stats_(setup.device.tensor(DType::f32, {4}, "step statistics")) {
  if (!setup.checkpoint.empty()) load_optimizer(setup.checkpoint, setup.device, lora_, setup.adapter);
  result_.planned = setup.plan.memory;
}

TrainingRun::StepInput TrainingRun::next_input() {
  StepInput input{.batches = setup_.feed.next()};
  input.cursor = setup_.feed.cursor();
  input.epoch = setup_.feed.epoch();
  return input;
}

TrainResult TrainingRun::run() {
  recent_.emplace_back(Clock::now(), state_.tokens);
  const bool stopped = early_stop();
  if (stopped) result_.end = TrainEnd::stopped_early;
  if (!stopped && state_.step < state_.total_steps) ahead_ = next_input();
  while (!stopped && state_.step < state_.total_steps) {
    step(std::exchange(ahead_, {}));
    const bool last = state_.step == state_.total_steps;
    // Before saving, so that the last checkpoint knows of it.
    if (last || due(setup_.plan.eval_every)) evaluate_now();
    if (due(setup_.plan.save_every)) save_now();
    if (early_stop()) {
      result_.end = TrainEnd::stopped_early;
      break;
    }
    if (!last && setup_.events.stop_requested && setup_.events.stop_requested()) {
      result_.end = TrainEnd::interrupted;
      break;
    }
  }
  if (result_.end != TrainEnd::interrupted) evaluate_now();
  save_now();
  if (!state_.best_eval_loss) save_output();
  result_.step = state_.step;
  result_.best_eval_loss = state_.best_eval_loss;
  result_.best_step = state_.best_step;
  result_.peak_bytes = setup_.device.memory().peak;
  return result_;
}

void TrainingRun::record_step(gpu::Recorder& recorder, const StepInput& input, std::uint64_t labels) {
  recorder.clear(lora_.grads);
  for (std::size_t i = 0; i < input.batches.size(); ++i) {
    const DeviceStream stream = model_.upload(recorder, stream_of(input.batches[i]));
    const LoraDropout dropout{.probability = static_cast<float>(setup_.options.lora.lora_dropout),
                              .seed = dropout_seed(setup_.options.seed, state_.micro_batches++)};
    // Divided by the labels of the whole step, so that accumulation gives the gradient of one large batch.
    const Head::Loss loss = model_.loss_and_gradients(recorder, stream, {.factor = 1.0f / static_cast<float>(labels)}, dropout);
    record(recorder, Sum{.x = loss.loss, .total = stats_, .slot = 0, .accumulate = i > 0});
    record(recorder, Sum{.x = loss.correct, .total = stats_, .slot = 1, .accumulate = i > 0});
  }
}

void TrainingRun::step(const StepInput& input) {
  std::uint64_t labels = 0, tokens = 0;
  for (const data::Batch& batch : input.batches) {
    labels += batch.labels.size();
    tokens += batch.tokens.size();
  }
  const double rate = learning_rate(schedule_, state_.step);
  gpu::Recorder recorder(setup_.device);
  record_step(recorder, input, labels);
  optimizer_.record_step(recorder, lora_, rate, state_.step + 1);
  recorder.copy(optimizer_.norm_and_factor(), stats_.part(2, {2}));
  recorder.submit();
  if (state_.step + 1 < state_.total_steps) ahead_ = next_input();
  const auto stats = setup_.device.read<float>(stats_);
  const double loss = stats[0] / static_cast<double>(labels), grad_norm = stats[2];
  if (!std::isfinite(loss) || !std::isfinite(grad_norm)) fail_diverged(input, loss, grad_norm);
  state_.step += 1;
  state_.tokens += tokens;
  state_.cursor = input.cursor;
  state_.epoch = input.epoch;
  report_step(input, loss, grad_norm, rate);
}

void TrainingRun::report_step(const StepInput& input, double loss, double grad_norm, double rate) {
  recent_.emplace_back(Clock::now(), state_.tokens);
  if (recent_.size() > speed_window + 1) recent_.pop_front();
  const double seconds = std::chrono::duration<double>(recent_.back().first - recent_.front().first).count();
  const auto tokens = static_cast<double>(recent_.back().second - recent_.front().second);
  const double per_step = seconds / static_cast<double>(recent_.size() - 1);
  const StepRecord record{.step = state_.step, .total_steps = state_.total_steps, .epoch = input.epoch, .loss = loss,
                          .grad_norm = grad_norm, .learning_rate = rate, .tokens = state_.tokens,
                          .tokens_per_second = seconds > 0 ? tokens / seconds : 0,
                          .memory_bytes = setup_.device.memory().peak,
                          .seconds_left = per_step * static_cast<double>(state_.total_steps - state_.step)};
  result_.last_loss = loss;
  metrics_.write(record);
  if (setup_.events.step) setup_.events.step(record);
}

void TrainingRun::fail_diverged(const StepInput& input, double loss, double grad_norm) {
  for (const data::Batch& batch : input.batches) {
    gpu::Recorder recorder(setup_.device);
    const DeviceStream stream = model_.upload(recorder, stream_of(batch));
    const auto place = model_.find_nonfinite(stream);
    if (!place) continue;
    std::size_t example = 0;
    for (std::uint32_t token = 1; token <= place->token; ++token) example += batch.position[token] == 0;
    fail<Diverged>("train", "Step {}: {} is not finite, first in row {} of {}; lower --learning-rate or look at that row. "
                   "{}", state_.step + 1, place->where, batch.rows.at(example), setup_.options.data.string(), last_checkpoint());
  }
  const Tensor found = setup_.device.tensor(DType::u32, {1}, "first non-finite");
  gpu::Recorder recorder(setup_.device);
  record(recorder, NonFinite{.x = lora_.grads, .index = found});
  recorder.submit();
  fail<Diverged>("train", "Step {}: the loss is {} and the gradient norm {}{}; lower --learning-rate. {}", state_.step + 1,
                 loss, grad_norm, describe_element(lora_, setup_.device.read<std::uint32_t>(found)[0]), last_checkpoint());
}

bool TrainingRun::early_stop() const {
  return setup_.options.early_stopping > 0 && state_.evaluations_without_gain >= setup_.options.early_stopping;
}

std::string TrainingRun::last_checkpoint() const {
  const auto& last = saved_step_ ? result_.checkpoint : setup_.checkpoint;
  return last.empty() ? "There is no checkpoint yet." : fmt::format("The last checkpoint is {}.", last.string());
}

void TrainingRun::evaluate_now() {
  if (setup_.data.valid.examples.empty() || state_.evaluated_step == state_.step) return;
  const Evaluation evaluation = evaluate(model_, setup_.data.valid, setup_.options.batch_size, setup_.events.evaluating);
  check<Diverged>(std::isfinite(evaluation.loss), "train", "Step {}: the validation loss is {}; lower --learning-rate. {}",
                  state_.step, evaluation.loss, last_checkpoint());
  state_.evaluated_step = state_.step;
  const bool best = !state_.best_eval_loss || evaluation.loss < *state_.best_eval_loss;
  if (best) {
    state_.best_eval_loss = evaluation.loss;
    state_.best_step = state_.step;
    state_.evaluations_without_gain = 0;
    save_output();
  } else {
    state_.evaluations_without_gain += 1;
  }
  const EvalRecord record{.step = state_.step, .eval_loss = evaluation.loss, .accuracy = evaluation.accuracy,
                          .tokens = evaluation.tokens, .best = best};
  metrics_.write(record);
  if (setup_.events.evaluation) setup_.events.evaluation(record);
  // The pause does not count in the speed.
  recent_.clear();
  recent_.emplace_back(Clock::now(), state_.tokens);
}

void TrainingRun::save_output() {
  LoraAdapter adapter = download_lora(setup_.device, lora_.params, setup_.adapter);
  adapter.config = setup_.options.lora;
  save_lora_adapter(setup_.options.output, adapter);
}

void TrainingRun::save_now() {
  if (saved_step_ == state_.step) return;
  saved_step_ = state_.step;
  LoraAdapter form = setup_.adapter;
  form.config = setup_.options.lora;
  save_checkpoint(setup_.options.output, state_, setup_.device, lora_, form, setup_.options.keep_checkpoints);
  result_.checkpoint = setup_.options.output / fmt::format("checkpoint-{}", state_.step);
  if (setup_.events.saved) setup_.events.saved(result_.checkpoint);
}

}  // namespace nibble
