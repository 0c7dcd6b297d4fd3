#pragma once

#include "nibble/report/progress.h"
#include "nibble/train/train.h"

namespace nibble::cli {

// Adapter, model, data, memory and steps, before the first one.
void print_plan(const RunPlan& plan, const TrainOptions& options, Progress& progress);

// "", or ", of so much" with whose word it is.
std::string budget_text(const MemoryBudget& budget);

// Of streamed layers that lie on a disk, "2.1 GiB of streamed layers in FOLDER, ..."; "" where none do.
std::string scratch_text(const MemoryPlan& memory, const ModelOptions& model);

// What a finished run gives, and what to do with it.
void print_result(const TrainResult& result, const TrainOptions& options, Progress& progress);

}  // namespace nibble::cli
