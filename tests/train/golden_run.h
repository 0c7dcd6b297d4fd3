#pragma once

#include "nibble/train/train.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

#include <vector>

namespace nibble::test {

// The settings of tests/golden/tiny/curve.json.
inline TrainOptions golden_options(const std::filesystem::path& output) {
  TrainOptions options{.model = source_path("models/tiny-qwen3"), .data = source_path("data/define/train.jsonl"),
                       .output = output};
  options.init_adapter = source_path("tests/golden/tiny/adapter_init");
  options.learning_rate = 0.002;
  options.lr_scheduler = LrScheduler::constant;
  options.warmup_ratio = 0;
  options.batch_size = 16;
  options.shuffle = false;
  options.save_every = 0;
  options.eval_every = 0;
  return options;
}

struct TrainedCurve {
  std::vector<StepRecord> steps;
  std::vector<EvalRecord> evaluations;
  RunPlan plan;
};

inline TrainedCurve train_curve(const TrainOptions& options, ProductPath path) {
  TrainedCurve curve;
  train(options, device(), path,
        {.plan = [&](const RunPlan& plan) { curve.plan = plan; },
         .step = [&](const StepRecord& record) { curve.steps.push_back(record); },
         .evaluation = [&](const EvalRecord& record) { curve.evaluations.push_back(record); }});
  return curve;
}

}  // namespace nibble::test
