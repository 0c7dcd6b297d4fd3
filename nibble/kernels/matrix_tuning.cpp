#include "nibble/kernels/matrix_tuning.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

namespace nibble {
namespace {

constexpr std::uint32_t vector_elements = 8;  // f16 of the 16 bytes that operands are read in
constexpr std::uint32_t most_splits = 8;

// Multiprocessors (compute units) by the maker's data sheet; a card that differs by its form has its longer name first.
struct KnownAdapter {
  std::string_view name;
  std::uint32_t processors;
};
constexpr std::array known_adapters{
    KnownAdapter{"H100 PCIe", 114}, KnownAdapter{"H100", 132},     KnownAdapter{"H200", 132},     KnownAdapter{"A100", 108},
    KnownAdapter{"L40S", 142},      KnownAdapter{"RTX 4090", 128}, KnownAdapter{"RTX 4080", 76},  KnownAdapter{"RTX 4070", 46},
    KnownAdapter{"RTX 3090", 82},   KnownAdapter{"RTX 3080", 68},  KnownAdapter{"RTX 3060", 28},
};

// Of unknown ones a guess on the low side, since what is split without need pays for its partial sums; 0: splits never pay.
std::uint32_t processors(const gpu::AdapterInfo& info) {
  for (const KnownAdapter& known : known_adapters) {
    if (info.name.find(known.name) != info.name.npos) return known.processors;
  }
  switch (info.type) {
    case gpu::AdapterType::discrete: return 40;
    case gpu::AdapterType::integrated: return 8;
    case gpu::AdapterType::software:
    case gpu::AdapterType::unknown: break;
  }
  return 0;
}

bool is_nvidia(const gpu::AdapterInfo& info) { return info.name.find("NVIDIA") != info.name.npos; }

std::uint64_t staged_bytes(const MatrixTile& tile) {
  const std::uint64_t row = 2ull * (tile.block_k + vector_elements);
  return row * (tile.block_m + (tile.direct ? 0 : tile.block_n));
}

// Blocks that one processor works on at once. Measured on an H100 by how many idle workgroups finish together: whatever the
// chip has, the driver divides 51 KB among the workgroups of a processor, each with 1 KB on top of its own. Registers
// allow two.
std::uint32_t blocks_a_processor(const gpu::AdapterInfo& info, const MatrixTile& tile) {
  constexpr std::uint64_t on_top = 1024;
  return 2 * (staged_bytes(tile) + on_top) <= info.limits.workgroup_storage + 3 * on_top ? 2 : 1;
}

// The widest matrices of the adapter whose edges divide those of our blocks.
std::optional<gpu::MatrixConfig> choose_matrix(const gpu::AdapterInfo& info) {
  std::optional<gpu::MatrixConfig> best;
  const auto volume = [](const gpu::MatrixConfig& c) { return c.m * c.n * c.k; };
  for (const auto& config : info.matrix_configs) {
    const bool fits = config.m % 8 == 0 && config.n % 8 == 0 && config.k % 8 == 0 && std::max({config.m, config.n, config.k}) <= 32;
    if (fits && (!best || volume(config) > volume(*best))) best = config;
  }
  return best;
}

std::uint32_t quotient_up(std::uint32_t count, std::uint32_t size) { return (count + size - 1) / size; }

// Time of so many blocks, in units of what two blocks of 128 x 128 on each processor take for 64 of the inner dimension, 1.8 us
// on an H100. A block alone on its processor takes 0.56 of that (staged by long steps), one that could have a second beside it
// 0.7 to 0.8.
double blocks_cost(const gpu::AdapterInfo& info, const MatrixTile& tile, std::uint32_t blocks, std::uint32_t steps) {
  const std::uint32_t at_once = blocks_at_once(info, tile), rest = blocks % at_once;
  const double wave = at_once == processors(info) ? 0.56 : 1.0;
  const double last = rest == 0 ? 0.0 : rest <= processors(info) ? std::min(0.7, wave) : wave;
  return (blocks / at_once * wave + last) * steps * tile.block_k / 64.0;
}

// Partial sums are written and read once at 5 MB a unit; other cards have much the same proportion of products to bandwidth.
double cost(const gpu::AdapterInfo& info, const MatrixShape& shape, const MatrixPlan& plan) {
  const MatrixTile& tile = plan.tile;
  const MatrixBlocks blocks = blocks_of(plan, shape.rows, shape.columns);
  const std::uint32_t steps = quotient_up(shape.inner, tile.block_k);
  if (plan.splits == 1) return blocks_cost(info, tile, blocks.count(), steps);
  const double sums = 1.5 + 8.0 * plan.splits * blocks.split() * tile.block_m * tile.block_n / 5e6;
  return blocks_cost(info, tile, blocks.whole, steps) +
         blocks_cost(info, tile, blocks.split() * plan.splits, quotient_up(steps, plan.splits)) + sums;
}

// How many doublings lie between two shapes, over all their sides.
double distance(const MatrixShape& a, const MatrixShape& b) {
  const auto doublings = [](std::uint32_t x, std::uint32_t y) { return std::fabs(std::log2(static_cast<double>(x) / y)); };
  return doublings(a.rows, b.rows) + doublings(a.columns, b.columns) + doublings(a.inner, b.inner);
}

constexpr double most_distance = 3, most_split_distance = 0.5;

struct Nearest {
  const MatrixTuning::Product* product = nullptr;
  double distance = 0;
};

Nearest nearest(const MatrixTuning& tuning, const MatrixShape& shape, bool tiled) {
  Nearest best;
  for (const auto& product : tuning.products) {
    if (product.shape.layout != shape.layout || product.plan.tile.direct != tiled) continue;
    const double away = distance(product.shape, shape);
    if (!best.product || away < best.distance) best = {&product, away};
  }
  return best;
}

}  // namespace

MatrixBlocks blocks_of(const MatrixPlan& plan, std::uint32_t rows, std::uint32_t columns) {
  MatrixBlocks blocks{quotient_up(rows, plan.tile.block_m), quotient_up(columns, plan.tile.block_n), 0};
  blocks.whole = plan.splits == 1 ? blocks.count() : plan.wave == 0 ? 0 : blocks.count() / plan.wave * plan.wave;
  return blocks;
}

std::uint32_t blocks_at_once(const gpu::AdapterInfo& info, const MatrixTile& tile) {
  return blocks_a_processor(info, tile) * processors(info);
}

// 128 x 128 by four subgroups is the fastest on an H100, with the longest steps that workgroup memory holds. The software
// adapter takes seconds to compile more than a few matrices.
std::optional<MatrixTile> default_matrix_tile(const gpu::AdapterInfo& info) {
  const auto matrix = choose_matrix(info);
  if (!matrix || info.subgroup_min_size != info.subgroup_max_size) return std::nullopt;
  const std::uint32_t subgroup = info.subgroup_max_size;
  if (info.type == gpu::AdapterType::software) return MatrixTile{*matrix, subgroup, 32, 16, 8, 32, 16};
  MatrixTile tile{*matrix, subgroup, 128, 128, 64, 64, 64};
  while (tile.block_k > matrix->k && staged_bytes(tile) > info.limits.workgroup_storage) tile.block_k /= 2;
  const bool fits = staged_bytes(tile) <= info.limits.workgroup_storage && tile.invocations() <= info.limits.workgroup_invocations;
  return fits ? std::optional(tile) : std::nullopt;
}

std::optional<MatrixTile> direct_matrix_tile(const gpu::AdapterInfo& info) {
  auto tile = default_matrix_tile(info);
  if (!tile || tile->matrix.m != tile->matrix.k) return std::nullopt;
  tile->direct = true;
  if (info.type == gpu::AdapterType::software) {
    tile->block_m = tile->part_m = 16;
    tile->block_n = tile->part_n = 32;
  } else {
    // Of blocks of 64 rows 16 make bands as high as 4 of 256.
    tile->block_m = tile->part_m = 64;
    tile->block_n = 256;
    tile->block_k = 128;
    tile->band = 16;
  }
  return suits(info, *tile) ? tile : std::nullopt;
}

bool suits(const gpu::AdapterInfo& info, const MatrixTile& tile) {
  const gpu::MatrixConfig& matrix = tile.matrix;
  const auto& configs = info.matrix_configs;
  if (std::find(configs.begin(), configs.end(), matrix) == configs.end() || tile.subgroup != info.subgroup_max_size) return false;
  const std::uint32_t token_edge = tile.direct ? matrix.n : matrix.m, output_edge = tile.direct ? matrix.m : matrix.n;
  const auto divides = [](std::uint32_t part, std::uint32_t whole) { return part > 0 && whole % part == 0; };
  if (tile.band == 0 || !divides(tile.part_m, tile.block_m) || !divides(tile.part_n, tile.block_n) || !divides(token_edge, tile.part_m) ||
      !divides(output_edge, tile.part_n) || !divides(matrix.k, tile.block_k) || (tile.direct && matrix.m != matrix.k)) {
    return false;
  }
  // Rows of staged tiles, and their vectors; what stages a tile must divide evenly.
  const auto stages = [&](std::uint32_t rows, std::uint32_t columns) {
    return divides(vector_elements, columns) && divides(columns / vector_elements, tile.invocations()) &&
           divides(tile.invocations(), rows * (columns / vector_elements));
  };
  const std::uint64_t x_bytes = 2ull * tile.block_m * (tile.block_k + vector_elements);
  const std::uint64_t w_bytes = 2ull * std::max(tile.block_n * (tile.block_k + vector_elements), tile.block_k * (tile.block_n + vector_elements));
  const bool staged = stages(tile.block_m, tile.block_k) &&
                      (tile.direct || (stages(tile.block_n, tile.block_k) && stages(tile.block_k, tile.block_n)));
  const std::uint64_t result_bytes = 16ull * tile.subgroups() * token_edge * (tile.part_n / 4 + 1);
  return staged && tile.invocations() <= info.limits.workgroup_invocations &&
         std::max(x_bytes + (tile.direct ? 0 : w_bytes), result_bytes) <= info.limits.workgroup_storage;
}

bool prefers_tiles(const gpu::Device& device, std::uint32_t rows) {
  // On an H200 a step of 1,024 rows is 0.5% faster over rows, one of 2,048 2% over tiles.
  constexpr std::uint32_t enough_on_nvidia = 1536;
  return rows >= matrix_tuning(device).tiled_rows.value_or(is_nvidia(device.info()) ? enough_on_nvidia : UINT32_MAX);
}

MatrixPlan split_plan(const gpu::AdapterInfo& info, const MatrixShape& shape, const MatrixTile& tile) {
  MatrixPlan plan{.tile = tile};
  if (processors(info) == 0) return plan;
  plan.wave = blocks_at_once(info, tile);
  MatrixPlan split = plan;
  for (split.splits = 2; split.splits <= most_splits; ++split.splits) {
    if (cost(info, shape, split) < cost(info, shape, plan)) plan = split;
  }
  return plan;
}

namespace {

// With blocks that cross no end, as far as parts allow.
MatrixTile within(std::span<const std::uint32_t> ends, const MatrixShape& shape, MatrixTile tile) {
  const auto crosses = [&] {
    return std::any_of(ends.begin(), ends.end(), [&](std::uint32_t end) { return end % tile.block_n != 0 && end != shape.columns; });
  };
  while (tile.block_n > tile.part_n && crosses()) tile.block_n /= 2;
  return tile;
}

}  // namespace

// Blocks as high as the rows are, by few columns, so that several are on each processor while others wait for their codes.
MatrixPlan decoding_plan(const gpu::AdapterInfo& info, const MatrixShape& shape, std::span<const std::uint32_t> ends) {
  constexpr std::uint32_t a_processor = 4, fewest_steps = 4, most_decoding_splits = 16;
  MatrixTile tile = default_matrix_tile(info).value();
  const MatrixTile usual = tile;
  if (info.type == gpu::AdapterType::software) {
    tile.block_m = tile.part_m = tile.matrix.m, tile.block_n = tile.part_n = tile.matrix.n, tile.block_k = tile.matrix.k;
    return {.tile = suits(info, tile) ? tile : within(ends, shape, usual)};
  }
  tile.block_m = std::max(tile.matrix.m, 16u), tile.part_n = std::max(tile.matrix.n, 16u), tile.block_k = 64, tile.band = 1;
  while (tile.block_m < std::min(shape.rows, most_decoding_rows)) tile.block_m *= 2;
  tile.part_m = tile.block_m, tile.block_n = 4 * tile.part_n, tile.two_sets = true;
  if (!suits(info, tile)) return {.tile = within(ends, shape, usual)};
  MatrixPlan plan{.tile = within(ends, shape, tile)};
  const std::uint32_t steps = quotient_up(shape.inner, tile.block_k);
  plan.splits = std::clamp(a_processor * processors(info) / blocks_of(plan, shape.rows, shape.columns).count(), 1u, std::min(std::max(steps / fewest_steps, 1u), most_decoding_splits));
  return plan;
}

MatrixPlan estimated_plan(const gpu::AdapterInfo& info, const MatrixShape& shape, bool tiled, std::span<const std::uint32_t> ends) {
  const MatrixTile own = within(ends, shape, (tiled ? direct_matrix_tile(info) : default_matrix_tile(info)).value());
  MatrixPlan best = split_plan(info, shape, own);
  MatrixTile shorter = own;
  shorter.block_k /= 2;
  // Long steps suit a block that has a processor to itself, half of them two that share one. Over the head's vocabulary these take 5% more
  // than those on an H200 where 6% less is estimated, why is not known.
  constexpr std::uint32_t most_inner = 1 << 16;
  if (tiled || !is_nvidia(info) || shape.inner > most_inner || !suits(info, shorter)) return best;
  const MatrixPlan plan = split_plan(info, shape, shorter);
  return cost(info, shape, plan) < cost(info, shape, best) ? plan : best;
}

MatrixPlan matrix_plan(const gpu::Device& device, const MatrixShape& shape, bool tiled, std::span<const std::uint32_t> ends) {
  const Nearest tuned = nearest(matrix_tuning(device), shape, tiled);
  if (!tuned.product || tuned.distance >= most_distance) return estimated_plan(device.info(), shape, tiled, ends);
  MatrixPlan plan = tuned.product->plan;
  plan.tile = within(ends, shape, plan.tile);
  return tuned.distance < most_split_distance ? plan : split_plan(device.info(), shape, plan.tile);
}

}  // namespace nibble
