#include "nibble/kernels/lora_matrix_plan.h"

#include "nibble/base/error.h"

#include <algorithm>
#include <cmath>

namespace nibble::detail {
namespace {

constexpr std::uint32_t lane = 8;  // elements of the 16 bytes that operands are read in
// Elements of partial sums, but for what one part needs.
constexpr std::uint64_t most_row_sums = 1u << 24, most_gradient_sums = 1u << 22;
constexpr std::uint32_t most_rounds = 4;  // of the workgroups at once

std::uint32_t groups(std::uint64_t count, std::uint64_t size) {
  return static_cast<std::uint32_t>((count + size - 1) / size);
}

// Workgroups that an adapter works on at once: on GPUs those of an H100's multiprocessors, four each or as many as its
// driver has workgroup memory for, which are 51 KB, with 1 KB on top for each. On the software adapter so many that tests
// see sums of many parts.
std::uint32_t workgroups_at_once(const gpu::Device& device, const LoraPlan& plan) {
  if (device.info().type == gpu::AdapterType::software) return 16;
  constexpr std::uint32_t processors = 132, memory = 52 << 10, on_top = 1 << 10;
  return processors * std::clamp(memory / (lora_memory(plan.tile, plan.text) + on_top), 1u, 4u);
}

// Into how many parts, up to `most`, to cut `length` of the inner dimension, each of which takes `blocks` workgroups. In
// units of what all workgroups at once do with one of `length`: they come in whole rounds, start for about 48, and leave
// partial sums of `narrow` that are written and read in f32 instead of f16.
std::uint32_t choose_parts(std::uint64_t length, std::uint64_t blocks, std::uint32_t narrow, std::uint32_t at_once,
                           std::uint64_t most) {
  std::uint64_t best = 1;
  double least = INFINITY;
  for (std::uint64_t parts = 1; parts <= most; ++parts) {
    const double rounds = groups(blocks * parts, at_once);
    const double sums = 4.0 * static_cast<double>(parts * blocks * narrow) / at_once;
    const double cost = rounds * (static_cast<double>(length) / static_cast<double>(parts) + 48) + sums;
    if (cost < least) least = cost, best = parts;
  }
  return static_cast<std::uint32_t>(best);
}

LoraTile tile_of(const gpu::Device& device, const LoraProblem& problem) {
  const auto tile = lora_tile(device.info(), problem.pass);
  check(tile.has_value(), "lora_matrix", "The adapter has no matrices for LoRA.");
  return *tile;
}

// Numbers the pieces of `size` vectors that ranges are cut into; returns how many there are.
std::uint32_t cut_ranges(const LoraProblem& problem, std::uint32_t size, std::array<LoraSegment, 3>& segments) {
  std::uint32_t count = 0;
  for (std::size_t i = 0; i < problem.ranges.size(); ++i) {
    const auto [begin, end] = problem.ranges[i];
    segments[i] = {begin, end, count, 0};
    count += groups(end - begin, size);
  }
  for (std::size_t i = problem.ranges.size(); i < 3; ++i) segments[i] = {0, 0, count, 0};
  return count;
}

// Parts of the columns of x.
void plan_rows(LoraPlan& plan, const LoraProblem& problem, std::uint32_t rows, std::uint32_t at_once) {
  LoraParams& p = plan.params;
  const std::uint32_t step = plan.tile.step / lane;
  p.blocks = groups(rows, plan.tile.block);
  p.part_size = p.blocks * plan.tile.block * p.narrow_blocks * plan.text.narrow;
  std::uint64_t columns = 0;
  for (const auto& [begin, end] : problem.ranges) columns += end - begin;
  const std::uint64_t groups_of_part = std::uint64_t{p.blocks} * p.narrow_blocks;
  const std::uint64_t most =
      std::clamp<std::uint64_t>(most_row_sums / p.part_size, 1, groups(most_rounds * at_once, groups_of_part));
  const std::uint32_t wanted = choose_parts(columns * lane, groups_of_part, plan.text.narrow, at_once, most);
  p.length = std::max(1u, groups(groups(columns, step), wanted)) * step;
  p.parts = cut_ranges(problem, p.length, p.segments);
  plan.text.whole_steps = std::all_of(problem.ranges.begin(), problem.ranges.end(),
                                      [&](const auto& r) { return (r[1] - r[0]) % step == 0; });
  plan.scratch = std::uint64_t{p.part_size} * p.parts;
  // Every range rounds its parts up.
  plan.most_scratch = (most_rounds * at_once + problem.ranges.size() * groups_of_part) * plan.tile.block *
                      plan.text.narrow;
}

// Parts of the rows of x.
void plan_columns(LoraPlan& plan, const LoraProblem& problem, std::uint32_t rows, std::uint32_t at_once) {
  LoraParams& p = plan.params;
  p.blocks = cut_ranges(problem, plan.tile.block / lane, p.segments);
  p.part_size = p.blocks * plan.tile.block * p.narrow_blocks * plan.text.narrow;
  if (p.part_size == 0) return;
  const std::uint64_t groups_of_part = std::uint64_t{p.blocks} * p.narrow_blocks;
  const std::uint64_t most =
      std::clamp<std::uint64_t>(most_gradient_sums / p.part_size, 1, groups(most_rounds * at_once, groups_of_part));
  const std::uint32_t wanted = choose_parts(rows, groups_of_part, plan.text.narrow, at_once, most);
  p.length = groups(groups(rows, plan.tile.step), wanted) * plan.tile.step;
  p.parts = groups(rows, p.length);
  p.powers = p.part_size * p.parts;
  plan.scratch = std::uint64_t{p.powers} + p.parts;
  plan.most_scratch = (std::uint64_t{p.part_size} + 1) * most;
  if (problem.pass != LoraPass::backward) return;
  p.padded_rows = groups(rows, plan.tile.step) * plan.tile.step;
  plan.row_sums = std::uint64_t{p.blocks} * p.padded_rows * plan.text.narrow;
}

}  // namespace

LoraProblem lora_down_problem(const LoraGroupShape& shape, bool dropout) {
  const std::array<std::uint32_t, 2> all{0, shape.inputs / lane};
  if (!dropout) return {LoraPass::down, shape.width(), {all}};
  return {LoraPass::down, shape.padded_rank(), {shape.outputs.size(), all}};
}

LoraProblem lora_up_problem(const LoraGroupShape& shape, const std::array<bool, 3>& adapted) {
  LoraProblem problem{LoraPass::up, shape.padded_rank(), {}};
  std::uint32_t begin = 0;
  for (std::size_t i = 0; i < shape.outputs.size(); ++i) {
    const std::uint32_t end = begin + shape.outputs[i] / lane;
    problem.ranges.push_back({begin, adapted[i] ? end : begin});
    begin = end;
  }
  return problem;
}

LoraProblem lora_with(LoraProblem problem, LoraPass pass) {
  problem.pass = pass;
  return problem;
}

LoraPlan lora_plan(const gpu::Device& device, const LoraProblem& problem, std::uint32_t rows) {
  LoraPlan plan{.tile = tile_of(device, problem), .text = {.pass = problem.pass, .narrow = 16}};
  LoraParams& p = plan.params;
  p.rows = rows;
  p.width = problem.width;
  p.narrow_blocks = groups(p.width, plan.tile.most_narrow);
  plan.text.narrow = groups(groups(p.width, p.narrow_blocks), 16) * 16;
  const bool by_columns = problem.pass == LoraPass::gradients || problem.pass == LoraPass::backward;
  (by_columns ? plan_columns : plan_rows)(plan, problem, rows, workgroups_at_once(device, plan));
  return plan;
}

bool lora_reads_once(const gpu::Device& device, const LoraGroupShape& shape) {
  const auto tile = lora_tile(device.info(), LoraPass::backward);
  return tile && shape.padded_rank() <= tile->most_narrow;
}

void set_dropout(LoraPlan& plan, const LoraGroupDropout& dropout, std::uint32_t first_row) {
  const double p = dropout.probability;
  check(p >= 0 && p < 1, "dropout", "The probability ({}) is not in [0, 1).", p);
  plan.text.dropout = p > 0;
  plan.params.seed = dropout.seed;
  plan.params.first_row = dropout.first_row + first_row;
  plan.params.threshold = static_cast<std::uint32_t>(std::llround(std::min(p * 0x1p32, 0x1p32 - 1)));
  for (std::size_t i = 0; i < 3; ++i) plan.params.segments[i][3] = dropout.streams[i];
}

}  // namespace nibble::detail
