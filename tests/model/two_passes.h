#pragma once

#include "nibble/gpu/host_memory.h"
#include "nibble/model/model.h"
#include "tests/model/two_segments.h"
#include "tests/support/gpu_test.h"

#include <vector>

namespace nibble::test {

// The ways to read host memory that the adapter has.
inline std::vector<gpu::HostMemory> host_memories() {
  std::vector<gpu::HostMemory> all;
  for (const auto memory : {gpu::HostMemory::staged, gpu::HostMemory::mapped, gpu::HostMemory::direct, gpu::HostMemory::carried}) {
    if (gpu::supports(device().info(), memory)) all.push_back(memory);
  }
  return all;
}

// Adapters that change something: every B is random.
inline void fill_b(ModelState& state) {
  std::uint64_t seed = 1;
  for (LoraLayer& layer : state.edit_lora()) {
    for (const Projection p : all_projections) layer.at(p).b = random_values(layer.at(p).b.size(), ++seed, 0.05f);
  }
}

struct TwoPasses {
  std::vector<float> losses, gradients, evaluated;
  bool operator==(const TwoPasses&) const = default;
};

// Two training passes with an evaluation after each, so that what layers and tables share is met as each kind of pass leaves it.
inline TwoPasses two_passes(const ModelState& state, Model& model, const TwoSegments& batch) {
  const LoraWeights& lora = *state.lora_mirror().train();
  TwoPasses result;
  for (int pass = 0; pass < 2; ++pass) {
    gpu::Recorder recorder(device());
    const DeviceStream stream = model.upload(recorder, batch.stream());
    recorder.clear(lora.grads);
    const Head::Loss loss = model.loss_and_gradients(recorder, stream, {.factor = 1.0f / static_cast<float>(batch.labels.size())});
    recorder.submit();
    result.losses = device().read<float>(loss.loss);
    const Head::Loss again = model.loss(recorder, stream);
    recorder.submit();
    result.evaluated = device().read<float>(again.loss);
  }
  result.gradients = device().read<float>(lora.grads);
  return result;
}

}  // namespace nibble::test
