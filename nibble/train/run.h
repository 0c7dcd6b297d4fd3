#pragma once

#include "nibble/base/error.h"
#include "nibble/report/metrics_log.h"
#include "nibble/train/checkpoint.h"
#include "nibble/train/train.h"
#include "nibble/train/trainer.h"

#include <chrono>
#include <deque>

namespace nibble {

// What train() has prepared for the loop.
struct RunSetup {
  const TrainOptions& options;
  const RunPlan& plan;
  RunData& data;
  StepFeed& feed;
  gpu::Device& device;
  const ModelOptions& model;
  const LoraAdapter& adapter;  // the first weights, and the form of all later ones
  const std::filesystem::path& checkpoint;  // that is resumed, or empty
  const TrainEvents& events;
};

// The loop of a run: steps, evaluations and saving.
class TrainingRun {
 public:
  TrainingRun(const RunSetup& setup, TrainState state);

  TrainResult run();

 private:
  // A step's batches and where the data stands after them.
  struct StepInput {
    std::vector<data::Batch> batches;
    data::Cursor cursor;
    double epoch = 0;
  };
  struct BegunStep {
    StepInput input;
    double learning_rate = 0;
  };
  StepInput next_input();
  void begin_step();
  // Ends the oldest step that has begun, after beginning the one that follows it, so that the GPU does not wait for the CPU.
  void step();
  void loop();
  void end_step();
  // Whether something is to be done between this step and the next that needs the weights as they then are.
  bool pauses_after(std::uint64_t step) const;
  void report_step(const StepInput& input, const StepResult& result, double learning_rate);
  // Saves what was trained until memory ran out or a file failed, where the device still gives it, and says where it is.
  std::string save_what_was_trained();
  std::optional<std::string> save_adapter_alone();
  [[noreturn]] void fail_diverged(const StepInput& input, const StepResult& result);
  // " in the gradient of X", or nothing where all are finite.
  std::string describe_nonfinite_gradient() const;
  bool early_stop() const;
  bool stop_requested() const;
  // "The last checkpoint is X.", for messages.
  std::string last_checkpoint() const;
  // DPO's reference of all pairs, before the first of them is taken. A resumed run computes the same bytes again.
  void find_reference();
  void evaluate_now();
  EvalRecord evaluation();
  LoraAdapter adapter() const;  // as it is to be saved
  void save_output();
  // What transformers' Trainer has in trainer_state.json beside the state.
  Json trainer_keys() const;
  void save_trainer_state();
  void save_now();
  static bool due(std::uint64_t every, std::uint64_t step) { return every > 0 && step % every == 0; }

  RunSetup setup_;
  TrainState state_;
  Schedule schedule_;
  ModelState model_state_;
  Trainer trainer_;
  MetricsLog metrics_;
  std::deque<BegunStep> begun_;     // oldest first, as the trainer's
  std::optional<StepInput> ahead_;  // the batches of the step that begins next, made while the GPU works
  std::optional<std::uint64_t> saved_step_;
  std::uint64_t first_step_ = 0, rows_ = 0;  // before this process, and trained by it
  std::chrono::steady_clock::time_point begin_;
  TrainResult result_;
  std::deque<std::pair<std::chrono::steady_clock::time_point, std::uint64_t>> recent_;  // when, and tokens so far
};

}  // namespace nibble
