#include "nibble/kernels/expert_rows.h"

#include "nibble/base/error.h"
#include "nibble/kernels/row_kernel.h"

#include <algorithm>

namespace nibble {
namespace {

struct SortParams {
  std::uint32_t slots, experts, most_tiles;
};

struct ExpertSumParams {
  std::uint32_t rows, columns;
};

std::uint32_t sort_lanes(const gpu::Device& device) { return device.info().type == gpu::AdapterType::software ? 8 : 256; }

// Tiles of many rows read a weight less often; where experts have few rows each, most of such a tile would be empty.
std::uint32_t tile_rows_for(std::uint32_t experts, std::uint32_t slots) { return slots / least_tile_rows >= experts ? 64 : least_tile_rows; }

}  // namespace

std::uint32_t expert_tiles(std::uint32_t experts, std::uint32_t slots, std::uint32_t tile_rows) {
  return slots / tile_rows + std::min(experts, slots);
}

ExpertRowsRoom make_expert_rows_room(gpu::Device& device, std::uint32_t experts, std::uint32_t most_slots) {
  const auto make = [&](std::initializer_list<std::uint32_t> dims) { return device.tensor(DType::u32, dims, "rows of experts"); };
  return {.counts = make({experts}), .begin = make({experts + 1}), .row_of_slot = make({most_slots}), .slot_of_row = make({most_slots}),
          .tiles = make({expert_tiles(experts, most_slots, least_tile_rows), 3})};
}

std::uint64_t expert_rows_bytes(std::uint32_t experts, std::uint32_t most_slots) {
  return gpu::buffer_bytes(DType::u32, {experts}) + gpu::buffer_bytes(DType::u32, {experts + 1}) + 2 * gpu::buffer_bytes(DType::u32, {most_slots}) +
         gpu::buffer_bytes(DType::u32, {expert_tiles(experts, most_slots, least_tile_rows), 3});
}

ExpertRows record(gpu::Recorder& recorder, const ExpertSort& op) {
  auto& device = recorder.device();
  const std::uint32_t slots = op.expert.dim(0) * op.expert.dim(1), tile_rows = op.tile_rows ? op.tile_rows : tile_rows_for(op.experts, slots);
  expect_shape(op.expert, DType::u32, {op.expert.dim(0), op.expert.dim(1)}, "expert sort", "expert");
  check(slots <= op.room.row_of_slot.size() && op.experts <= op.room.counts.size(), "expert sort", "{} slots of {} experts came; there is room for {} of {}.",
        slots, op.experts, op.room.row_of_slot.size(), op.room.counts.size());
  check(tile_rows % least_tile_rows == 0 && tile_rows <= most_tile_rows, "expert sort", "Tiles of {} rows were asked for; multiples of {} up to {} can be.",
        tile_rows, least_tile_rows, most_tile_rows);
  const std::uint32_t tiles = expert_tiles(op.experts, slots, tile_rows);
  const ExpertRows rows{.experts = op.experts, .per_token = op.expert.dim(1), .slots = slots, .tile_rows = tile_rows,
                        .expert = op.expert, .begin = op.room.begin.view({op.experts + 1}), .row_of_slot = op.room.row_of_slot.view({slots}),
                        .slot_of_row = op.room.slot_of_row.view({slots}), .tiles = op.room.tiles.view({tiles, 3})};
  gpu::Prelude prelude;
  prelude.constant("WORKGROUP", sort_lanes(device)).constant("TILE_ROWS", tile_rows);
  const SortParams params{slots, op.experts, tiles};
  const Tensor counts = op.room.counts.view({op.experts});
  const gpu::Work work{.bytes = 4.0 * slots};
  recorder.dispatch(kernel(device, "expert_rows", prelude, {}, "count"), {gpu::read(op.expert), gpu::write(counts)}, params, {op.experts}, work);
  recorder.dispatch(kernel(device, "expert_rows", prelude, {}, "place"),
                    {gpu::read(op.expert), gpu::read(counts), gpu::write(rows.begin), gpu::write(rows.row_of_slot), gpu::write(rows.slot_of_row),
                     gpu::write(rows.tiles)},
                    params, {op.experts}, work);
  return rows;
}

void record(gpu::Recorder& recorder, const ExpertSum& op) {
  auto& device = recorder.device();
  const std::uint32_t tokens = op.y.dim(0), columns = op.y.dim(1);
  expect_shape(op.x, DType::f32, {op.rows.slots, columns}, "expert sum", "x");
  expect_shape(op.y, DType::f32, {op.rows.slots / op.rows.per_token, columns}, "expert sum", "y");
  if (op.plus) expect_shape(op.plus, DType::f32, {tokens, columns}, "expert sum", "plus");
  const RowKernel row_kernel(device, columns);
  gpu::Prelude prelude = row_kernel.prelude(DType::f32);
  prelude.constant("PER_TOKEN", op.rows.per_token);
  const auto entry = row_kernel.kernel(device, "expert_sum", op.plus ? "on_top" : "alone", prelude);
  const ExpertSumParams params{tokens, columns};
  const auto x = gpu::read(op.x), rows = gpu::read(op.rows.row_of_slot), y = gpu::write(op.y);
  const gpu::Work work{.bytes = static_cast<double>(op.x.bytes() + op.y.bytes() + (op.plus ? op.plus.bytes() : 0)),
                       .flops = static_cast<double>(op.x.size())};
  if (op.plus) {
    recorder.dispatch(entry, {x, rows, y, gpu::read(op.plus)}, params, gpu::linear_grid(device, tokens), work);
  } else {
    recorder.dispatch(entry, {x, rows, y}, params, gpu::linear_grid(device, tokens), work);
  }
}

}  // namespace nibble
