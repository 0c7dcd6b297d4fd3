#include "nibble/train/plan_cost.h"

#include "nibble/gpu/host_tensor.h"
#include "nibble/model/table_slices.h"
#include "nibble/weights/joint.h"

#include <algorithm>
#include <cmath>

namespace nibble {

double PlanCost::pass() const {
  const double tokens = room.tokens, labels = room.labels, of_head = work.head_passes * work.head;
  if (!trains) return (tokens * work.forward() + labels * work.head) / rates.flops;
  return (tokens * (work.step() - of_head) + labels * of_head) / rates.flops;
}

double PlanCost::again(std::uint32_t recompute_mlp, std::uint32_t recompute, bool in_chunks) const {
  if (recompute > 0) {
    --recompute;
  } else if (recompute_mlp > 0) {
    --recompute_mlp;
  }
  if (in_chunks) ++recompute_mlp;
  const double flops = recompute * work.again(Activations::recompute) + recompute_mlp * work.again(Activations::recompute_mlp);
  return room.tokens * flops / rates.flops;
}

// What copies cost beside so many seconds of arithmetic. Where products carry them: a share of their time (10 to 23% on an H200), and
// what the arithmetic is too short to hide.
double PlanCost::copies(double seconds, double arithmetic) const {
  constexpr double carried_share = 0.2;
  if (!carried) return seconds;
  return carried_share * seconds + std::max(0.0, seconds - arithmetic);
}

// Of half the copies of a pass. Reading from a disk goes on beside all else.
double PlanCost::sending(Streamed streamed, double arithmetic) const {
  const double bytes = streamed.layers * layer_bytes, copying = copies(bytes / rates.link_bytes, arithmetic);
  if (!streamed.on_disk) return copying;
  return std::max(copying, bytes / rates.disk_bytes - arithmetic);
}

// The forward pass has a third of the arithmetic and half of the copies.
double PlanCost::layers(std::uint32_t recompute_mlp, std::uint32_t recompute, Streamed streamed, std::uint32_t mlp_chunk) const {
  const double more = again(recompute_mlp, recompute, mlp_chunk > 0);
  const double all = room.tokens * (work.step() - work.head_passes * work.head) / rates.flops, forward = room.tokens * work.forward() / rates.flops;
  if (!trains) return sending(streamed, forward);
  return more + sending(streamed, forward) + sending(streamed, all - forward + more);
}

// Nothing goes on beside these copies.
double PlanCost::offloaded_inputs(std::uint32_t layers, std::uint64_t input_bytes) const {
  return 2.0 * layers * static_cast<double>(input_bytes) / rates.link_bytes;
}

// Forward alone each is decoded once in either case.
double PlanCost::one_room() const {
  if (!trains) return 0;
  const auto [out, in] = joint_dims(config, config.has_experts() ? Joint::qkv : Joint::gate_up);
  return config.num_layers * 2.5 * out * in / rates.memory_bytes;
}

// Of training. Forward and back its weights are asked for five times, and where each has its own room that of gate and up is read in two forms by the
// backward pass.
double PlanCost::mlp_chunks(std::uint32_t rows, bool one_room) const {
  const double further = std::ceil(room.tokens / static_cast<double>(rows)) - 1;
  const auto elements = [&](Joint joint) { return 1.0 * joint_dims(config, joint).out * joint_dims(config, joint).in; };
  const double decoded = one_room ? 3 * elements(Joint::gate_up) + 2 * elements(Joint::down) : 2 * elements(Joint::gate_up);
  return further * config.num_layers * 2.5 * decoded / rates.memory_bytes;
}

// Each chunk of rows reads the head for each product with it. In slices there is one more product, codes are decoded and what lies on
// the host is brought, both twice. Forward alone each is done once, and there is no product more.
double PlanCost::head(const HeadOptions& settled) const {
  const double elements = 1.0 * config.vocab_size * config.hidden_size, bytes = elements * static_cast<double>(size_of(operand_dtype(path)));
  const double chunks = std::ceil(room.labels / static_cast<double>(settled.chunk_rows));
  const int whole_passes = trains ? work.head_passes : 1;
  if (!TableSlices::needed(settled.form, settled.on_host)) return chunks * whole_passes * bytes / rates.memory_bytes;
  const double product = room.labels * work.head / rates.flops;
  const int times = trains ? 2 : 1;
  double seconds = chunks * (whole_passes + times - 1) * bytes / rates.memory_bytes + (times - 1) * product;
  const double stored = settled.form == TableForm::dense ? bytes : elements * (bits_of(settled.form) / 8.0 + 4.0 / nf4_block);
  if (settled.form != TableForm::dense) seconds += times * (stored + bytes) / rates.memory_bytes;
  if (!settled.on_host) return seconds;
  const double sent = stored / rates.link_bytes;
  return seconds + copies(sent, product) + (trains ? copies(sent, work.head_passes * product) : 0);
}

double PlanCost::embedding_rows() const { return 4.0 * room.tokens * config.hidden_size / rates.link_bytes; }

double PlanCost::state_on_host(std::uint64_t bytes) const {
  constexpr double waiting_bytes = 1.2e9;  // a second, as on an H100 and its host
  return 2 * static_cast<double>(bytes) / (gpu::has_host_tensors(info) ? rates.link_bytes : std::min(rates.link_bytes, waiting_bytes));
}

}  // namespace nibble
