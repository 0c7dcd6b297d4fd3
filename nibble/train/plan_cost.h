#pragma once

#include "nibble/model/head.h"
#include "nibble/train/run_data.h"
#include "nibble/train/step_rates.h"
#include "nibble/train/step_work.h"

#include <cstdint>

namespace nibble {

struct Streamed {
  std::uint32_t layers = 0;
  bool on_disk = false;
};

// Seconds that the choices of a plan cost a pass over `room`, forward and, where it trains, backward, by rates. What is measured of them is in
// docs/performance.md.
struct PlanCost {
  const gpu::AdapterInfo& info;
  const ModelConfig& config;
  ProductPath path;
  bool carried;  // kernels that multiply or decode take streamed layers along
  BatchRoom room;
  bool trains;   // else passes are forward alone
  StepWork work;
  StepRates rates;
  double layer_bytes;  // of a streamed layer

  // All that is computed and nothing given up.
  double pass() const;
  // Of layers that are computed again, with so many streamed. Of the very last one everything is still there, but of its MLP where that
  // goes in chunks of rows (0: it does not).
  double layers(std::uint32_t recompute_mlp, std::uint32_t recompute, Streamed streamed, std::uint32_t mlp_chunk) const;
  double offloaded_inputs(std::uint32_t layers, std::uint64_t input_bytes) const;
  // Projections that are decoded into one room, some of them twice.
  double one_room() const;
  // Each further chunk of the MLP decodes its weights again.
  double mlp_chunks(std::uint32_t rows, bool one_room) const;
  // A head whose logits exist for so many rows at a time.
  double head(const HeadOptions& settled) const;
  // Rows of an embedding on the host.
  double embedding_rows() const;
  // An optimiser's state in host memory: it goes to the device and back, and where copies cannot be recorded each waits for the device and
  // for staging.
  double state_on_host(std::uint64_t bytes) const;

 private:
  double again(std::uint32_t recompute_mlp, std::uint32_t recompute, bool in_chunks) const;
  double copies(double seconds, double arithmetic) const;
  double sending(Streamed streamed, double arithmetic) const;
};

}  // namespace nibble
