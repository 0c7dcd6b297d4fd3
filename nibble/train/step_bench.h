#pragma once

#include "nibble/gpu/device.h"
#include "nibble/model/model.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

namespace nibble {

// A training step over made-up weights and tokens, to measure without files.
struct StepBenchOptions {
  ModelConfig config;
  ProductPath path = ProductPath::f32;
  std::vector<Residency> residency = {};  // by layer; empty: all resident
  StreamOptions stream = {};
  ActivationChoices activations = {};
  std::uint32_t mlp_chunk = 0;            // see LayersOptions
  bool one_decoded_room = false;          // see LayersOptions
  std::uint32_t offloaded_inputs = 0;     // see LayerInputsOptions
  std::uint32_t batch = 1, length = 512;  // segments and tokens of each; every token is trained
  std::uint32_t lora_rank = 16;
  MomentsOptions moments = {};            // of the adapters
  std::uint32_t head_chunk = 0;
  std::optional<TrainedHeadOptions> head = {};  // trains the head too
  std::uint32_t steps = 3;                // timed, after one and at least 0.4 s of warming
  std::function<void(double seconds)> after_step = {};  // hears of each step, those that warm up included

  std::uint32_t tokens() const { return batch * length; }
};

struct StepBenchResult {
  std::vector<double> seconds;  // of each timed step, wall clock
  double record_seconds = 0;    // of the last, while the CPU recorded and submitted
  double flops = 0;             // of a step: products forward and backward, what is computed again, attention and adapters
  double required_flops = 0;    // the same without what is computed again
  std::uint64_t tokens = 0;
  std::uint64_t peak_bytes = 0;
  std::uint64_t host_bytes = 0;    // of weights and states in host memory
  std::uint64_t disk_bytes = 0;    // of layers on a disk
  std::uint64_t read_bytes = 0;    // of them, asked of the disk in a step
  std::uint64_t copied_bytes = 0;  // of layers, to the device in a step
  double least_copy_seconds = 0;   // that such copies take with nothing beside them
  std::optional<std::uint64_t> driver_bytes;  // what Dawn has taken from the driver
  double loss = 0;  // of step 1 + `steps`, counted from the first of all
  std::vector<gpu::ProfileRow> kernels;  // of one timed step, longest first; empty without profiling
};

StepBenchResult bench_step(gpu::Device& device, const StepBenchOptions& options);

// The first steps of a state with adapters. Pipelines are made in the first of three.
struct FirstSteps {
  double first_seconds = 0;  // from the weights on, what the model needs beside them included
  double next_seconds = 0;   // the faster of the others
  std::uint64_t pipelines = 0;  // made, or taken from the disk
  double loss = 0;              // of the last
};
FirstSteps first_steps(ModelState& state, const StepBenchOptions& options);

}  // namespace nibble
