#pragma once

#include "nibble/model/memory_plan.h"
#include "nibble/report/records.h"
#include "nibble/train/evaluate.h"
#include "nibble/train/options.h"
#include "nibble/train/placement.h"
#include "nibble/train/run_data.h"
#include "nibble/weights/model_cache.h"

#include <functional>
#include <string>

namespace nibble {

// What a run will do, known before its first step.
struct RunPlan {
  gpu::AdapterInfo gpu;
  ProductPath path = ProductPath::f32;
  ModelConfig config;
  std::string forms;                               // of the rows
  data::DatasetCounts counts;                      // of the data files
  std::vector<data::FileExamples> files;
  // Where the files have weights, of each: the examples that training has, and how many an epoch draws.
  std::vector<std::uint32_t> train_rows, drawn;
  std::uint64_t train_examples = 0, valid_examples = 0;
  std::uint64_t train_tokens = 0, trained_tokens = 0;  // of each example once
  std::uint64_t trainable_parameters = 0;
  LoraConfig lora;
  TokenChoice tokens;                              // that the options name
  std::optional<TrainedHeadOptions> head;          // where it is trained
  MomentsOptions moments;                          // of the adapter
  ModelOptions model;                              // how it uses the device's memory
  MemoryBudget budget;
  BatchRoom room;                                  // of the largest batch
  MemoryPlan memory;
  double pass_seconds = 0, extra_seconds = 0;      // estimated; see Placement
  bool measured = false;                           // whether by a measurement on this device
  std::uint64_t total_steps = 0, first_step = 0;   // first_step updates are done already (--resume)
  std::uint64_t warmup_steps = 0, eval_every = 0, save_every = 0;
};

// What a run tells while it goes on; each may be empty.
struct TrainEvents {
  std::function<void(double)> reading;     // part of the rows that is read, of training's, then of validation's
  std::function<void(const RunPlan&)> plan;
  std::function<void(double)> caching;     // part of the model that is quantised into the cache
  std::function<void(const CachedModel&)> cached;  // where the model is loaded from, where there is a cache
  std::function<void(double)> loading;     // part of the model that is on the device
  std::function<void(const StepRecord&)> step;
  std::function<void(double)> referring;   // part of the pairs whose reference is known (DPO), training's, then validation's
  std::function<void(double)> evaluating;  // part of the validation set that is done
  std::function<void(const EvalRecord&)> evaluation;
  std::function<void(const std::filesystem::path&)> saved;  // a checkpoint
  std::function<bool()> stop_requested;    // asked after each step; true saves and ends
};

enum class TrainEnd { finished, stopped_early, interrupted, dry_run };

// What a run keeps on the disk: the adapter, and in each checkpoint two moments beside it; a head that is trained likewise.
struct SavedBytes {
  std::uint64_t adapter, checkpoint;
};
SavedBytes saved_bytes(const RunPlan& plan);

struct TrainResult {
  TrainEnd end = TrainEnd::finished;
  std::uint64_t step = 0;
  std::uint64_t steps_done = 0;      // by this run: 0 where a resumed one was at its end
  double last_loss = 0;
  std::optional<double> best_eval_loss;
  std::uint64_t best_step = 0;
  std::filesystem::path checkpoint;  // the last one
  MemoryPlan planned;
  std::uint64_t peak_bytes = 0;      // measured
  std::optional<std::uint64_t> driver_bytes;  // what Dawn has taken from the driver for it
};

// Fine-tunes an adapter: options.output becomes a PEFT folder (the best adapter by validation loss, or the last where there
// is no validation) with metrics.jsonl and checkpoints. Throws UsageError, DataError, DeviceError or Diverged; what was saved
// before stays whole.
TrainResult train(const TrainOptions& options, gpu::Device& device, ProductPath path, const TrainEvents& events = {});

}  // namespace nibble
