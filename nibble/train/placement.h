#pragma once

#include "nibble/model/memory_plan.h"
#include "nibble/train/options.h"
#include "nibble/train/run_data.h"
#include "nibble/train/step_rates.h"

#include <cstdint>
#include <functional>
#include <optional>

namespace nibble {

// How much memory a run may take.
struct MemoryBudget {
  std::uint64_t bytes = 0;  // 0: not known, nothing is given up
  bool promised = false;    // by --vram-limit: a run that needs more is refused
  std::uint64_t driver = 0;  // of the limit, what is left to Dawn's own beside `bytes`
  std::uint64_t ram = 0;     // of host memory, as MemoryPlan::host_total() counts it; 0: not known, or not asked
  bool ram_promised = false;  // by --ram-limit
};

// That of the options, else nine tenths of the device's: the rest is left to the driver and to others. UsageError where a part
// of a device is asked for that does not say how large it is. Of host memory likewise, by `available_ram` (empty: not known).
MemoryBudget memory_budget(const TrainOptions& options, const gpu::AdapterInfo& info, std::optional<std::uint64_t> available_ram = {});

// How a run uses the memory that there is.
struct Placement {
  ModelOptions model;
  std::optional<TrainedHeadOptions> head;  // where the head is trained
  MomentsOptions moments;                  // of the adapters
  MemoryPlan memory;
  double pass_seconds = 0;   // of one pass over `room`, forward and backward, by the rates
  double extra_seconds = 0;  // of them what saving memory costs
};

// What the options leave open is chosen so that the plan stays within the budget and costs the least time: layers that compute
// again, one room for decoded weights, smaller chunks of logits, weights, the adapters' moments and the state of a trained head in host memory, and
// streamed layers on a disk where host memory is too small for them and how they are kept is not said. A
// promise that cannot be kept throws UsageError with the least that would do. Seconds are by `estimate` where it is given; choices
// never are, so that a dry run that has measured rates makes those of the run.
Placement place(const TrainOptions& options, const gpu::Device& device, const ModelConfig& config, ProductPath path,
                BatchRoom room, MemoryBudget budget, const StepRates& rates, const std::optional<StepRates>& estimate = {});

// The same for forward passes alone, which keep nothing of a layer and have neither gradients nor moments. Of the options those of the
// weights, the decoded rooms and the head's chunks count, and `lora` as the adapter that there is; without target_modules there is none.
Placement place_evaluation(TrainOptions options, const gpu::Device& device, const ModelConfig& config, ProductPath path, BatchRoom room,
                           MemoryBudget budget);

// What `placed` gives for the budget, if the disk has the room that it needs. Else DataError where a disk was asked for, by `stream` or by
// --ram-limit; where the plan took it by itself, the layers stay in host memory, with a warning.
Placement on_its_disk(const StreamOptions& stream, MemoryBudget budget, const std::function<Placement(const MemoryBudget&)>& placed);

}  // namespace nibble
