#pragma once

#include "nibble/gpu/device.h"

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace nibble {

// What one workgroup computes: block_m x block_n of the result in steps of block_k of the inner dimension, by subgroups of
// part_m x part_n each.
struct MatrixTile {
  gpu::MatrixConfig matrix;
  std::uint32_t subgroup;  // invocations
  std::uint32_t block_m, block_n, block_k, part_m, part_n;
  std::uint32_t band = 4;  // block rows that blocks go down side by side, sharing operands in the cache
  bool direct = false;     // the weight lies in tiles (Weight::tile) and is loaded from there, not staged
  bool two_sets = false;   // of registers, where the weight is decoded on its way: what is loaded has two steps' time to come

  std::uint32_t subgroups() const { return block_m / part_m * (block_n / part_n); }
  std::uint32_t invocations() const { return subgroups() * subgroup; }
};

// The staged tile that suits an adapter in general; empty where it has no matrices that suit.
std::optional<MatrixTile> default_matrix_tile(const gpu::AdapterInfo&);

// The direct one, for weights in tiles of its matrices' edge; likewise.
std::optional<MatrixTile> direct_matrix_tile(const gpu::AdapterInfo&);

// Whether a kernel can be written for it: the adapter has the matrices, and memory and invocations for the blocks.
bool suits(const gpu::AdapterInfo&, const MatrixTile& tile);

enum class MatrixLayout { nt, nn };  // of ProductNT and ProductNN

struct MatrixShape {
  MatrixLayout layout;
  std::uint32_t rows, columns, inner;  // of y, and of the sums
};

// How a product is done: with which tile, and the inner dimension of some blocks in how many splits, so that few blocks fill
// the adapter: of those beyond whole waves of `wave` blocks, which it does at once; of all where that is 0.
struct MatrixPlan {
  MatrixTile tile;
  std::uint32_t splits = 1;
  std::uint32_t wave = 0;
};

// Blocks of a product, and those of them that are not split: the first ones.
struct MatrixBlocks {
  std::uint32_t down, across, whole;

  std::uint32_t count() const { return down * across; }
  std::uint32_t split() const { return count() - whole; }
};
MatrixBlocks blocks_of(const MatrixPlan& plan, std::uint32_t rows, std::uint32_t columns);

// Blocks that an adapter does at once; 0 where it is not known to gain from many.
std::uint32_t blocks_at_once(const gpu::AdapterInfo&, const MatrixTile& tile);

// What was found fastest on an adapter (`nibble bench matmul --sweep --save`); attached to the device, empty at first.
struct MatrixTuning {
  struct Product {
    MatrixShape shape;
    MatrixPlan plan;
  };
  std::vector<Product> products;
  // Rows of a batch from which on products went faster over weights in tiles, by plans with direct tiles; UINT32_MAX: never;
  // empty: as on adapters of its kind.
  std::optional<std::uint32_t> tiled_rows;
};
inline MatrixTuning& matrix_tuning(const gpu::Device& device) { return device.attached<MatrixTuning>(); }

// Whether products of batches of so many rows are faster over weights in tiles, where those fit.
bool prefers_tiles(const gpu::Device& device, std::uint32_t rows);

// The tile with as many splits as are estimated to be fastest.
MatrixPlan split_plan(const gpu::AdapterInfo&, const MatrixShape& shape, const MatrixTile& tile);

// For a weight in NF4 that is decoded on its way, which is faster than to decode it before for at most so many rows.
constexpr std::uint32_t most_decoding_rows = 64;
MatrixPlan decoding_plan(const gpu::AdapterInfo&, const MatrixShape& shape, std::span<const std::uint32_t> ends = {});

// What is estimated to be fastest of the adapter's own tiles. `tiled` is whether the weight lies in tiles; `ends` are columns that no
// block may cross, as far as parts allow.
MatrixPlan estimated_plan(const gpu::AdapterInfo&, const MatrixShape& shape, bool tiled, std::span<const std::uint32_t> ends = {});

// The same, but with the tile of the most similar shape that was tuned, and of a very similar one with its splits.
MatrixPlan matrix_plan(const gpu::Device& device, const MatrixShape& shape, bool tiled, std::span<const std::uint32_t> ends = {});

}  // namespace nibble
