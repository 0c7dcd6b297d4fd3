#pragma once

#include "nibble/kernels/kernel.h"

namespace nibble {

// The rows of a mixture of experts: T tokens with k experts each are S = T k slots, slot t k + j the j-th choice of token t, and as
// many rows, which lie by expert and within one by slot. All u32. Products over them go by tiles of rows of one expert, in a table,
// since how many rows an expert has is known to the device alone.
struct ExpertRows {
  std::uint32_t experts = 0, per_token = 0, slots = 0;
  std::uint32_t tile_rows = 0;  // of a tile at most, a multiple of least_tile_rows
  Tensor expert;                // (T, k) that were sorted
  Tensor begin;                 // (E + 1) the first row of each expert, and S
  Tensor row_of_slot;           // (S)
  Tensor slot_of_row;           // (S)
  Tensor tiles;                 // (expert_tiles, 3): expert, first row, rows; no rows where there are fewer tiles
};

inline constexpr std::uint32_t least_tile_rows = 16, most_tile_rows = 128;

// Tiles that S slots may make.
std::uint32_t expert_tiles(std::uint32_t experts, std::uint32_t slots, std::uint32_t tile_rows);

// Room for at most so many slots, and what it takes of the device's memory.
struct ExpertRowsRoom {
  Tensor counts, begin, row_of_slot, slot_of_row, tiles;
};
ExpertRowsRoom make_expert_rows_room(gpu::Device& device, std::uint32_t experts, std::uint32_t most_slots);
std::uint64_t expert_rows_bytes(std::uint32_t experts, std::uint32_t most_slots);

// Sorts the slots by expert. The order is the same each time.
struct ExpertSort {
  Tensor expert;  // (T, k) below `experts`
  std::uint32_t experts;
  ExpertRowsRoom room;
  std::uint32_t tile_rows = 0;  // 0: as suits products without matrix units
};
ExpertRows record(gpu::Recorder& recorder, const ExpertSort& op);

// y(T, C) = plus + the sum of each token's rows, in the order of its choices; without `plus` that sum.
struct ExpertSum {
  Tensor x;  // (S, C) f32
  ExpertRows rows;
  Tensor y;
  Tensor plus = {};  // (T, C), another tensor
};
void record(gpu::Recorder& recorder, const ExpertSum& op);

}  // namespace nibble
