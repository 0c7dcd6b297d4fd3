#pragma once

#include "nibble/train/train.h"
#include "tests/support/files.h"
#include "tests/support/gpu_test.h"

#include <fstream>
#include <string>
#include <vector>

namespace nibble::test {

// The settings of tests/golden/tiny/curve.json.
inline TrainOptions golden_options(const std::filesystem::path& output) {
  TrainOptions options{.model = source_path("models/tiny-qwen3"), .output = output, .data = source_path("data/define/train.jsonl")};
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

// The first rows of a shipped file, in a folder of the test.
inline std::filesystem::path first_rows(const TemporaryFolder& folder, const std::string& name, std::size_t count) {
  std::ifstream in(source_path("data/define/" + name));
  std::string text, line;
  for (std::size_t i = 0; i < count && std::getline(in, line); ++i) text += line + "\n";
  return folder.write(name, text);
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
