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

// Blocks of a product that an adapter works on at once: two a processor. Of unknown ones a guess on the low side, since what is
// split without need pays for its partial sums.
std::uint32_t blocks_at_once(const gpu::AdapterInfo& info) {
  for (const KnownAdapter& known : known_adapters) {
    if (info.name.find(known.name) != info.name.npos) return 2 * known.processors;
  }
  switch (info.type) {
    case gpu::AdapterType::discrete: return 80;
    case gpu::AdapterType::integrated: return 16;
    case gpu::AdapterType::software:
    case gpu::AdapterType::unknown: break;
  }
  return 1;
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

// Time in units of 64 of the inner dimension of all blocks that run at once. A last wave that is not full takes at least three
// quarters of a full one, as fewer blocks are each somewhat faster. Partial sums are written and read once at a rate of 5 MB a
// unit, which is that of an H100; other cards have much the same proportion of products to bandwidth.
double cost(const MatrixShape& shape, const MatrixTile& tile, std::uint32_t at_once, std::uint32_t splits) {
  const std::uint32_t blocks = quotient_up(shape.rows, tile.block_m) * quotient_up(shape.columns, tile.block_n) * splits;
  const std::uint32_t steps = quotient_up(quotient_up(shape.inner, tile.block_k), splits);
  const double rest = static_cast<double>(blocks % at_once) / at_once;
  const double waves = blocks / at_once + (rest > 0 ? std::max(0.75, rest) : 0.0);
  const double sums = splits > 1 ? 1.5 + 8.0 * splits * shape.rows * shape.columns / 5e6 : 0.0;
  return waves * steps * tile.block_k / 64.0 + sums;
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

// 128 x 128 by four subgroups is the fastest on an H100, with the longest steps that workgroup memory holds. The software
// adapter takes seconds to compile more than a few matrices.
std::optional<MatrixTile> default_matrix_tile(const gpu::AdapterInfo& info) {
  const auto matrix = choose_matrix(info);
  if (!matrix || info.subgroup_min_size != info.subgroup_max_size) return std::nullopt;
  const std::uint32_t subgroup = info.subgroup_max_size;
  if (info.type == gpu::AdapterType::software) return MatrixTile{*matrix, subgroup, 32, 16, 8, 32, 16};
  MatrixTile tile{*matrix, subgroup, 128, 128, 64, 64, 64};
  const auto bytes = [&] { return (tile.block_m + tile.block_n) * (tile.block_k + vector_elements) * 2; };
  while (tile.block_k > matrix->k && bytes() > info.limits.workgroup_storage) tile.block_k /= 2;
  const bool fits = bytes() <= info.limits.workgroup_storage && tile.invocations() <= info.limits.workgroup_invocations;
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

MatrixPlan matrix_plan(const gpu::Device& device, const MatrixShape& shape, bool tiled, std::span<const std::uint32_t> ends) {
  const gpu::AdapterInfo& info = device.info();
  const std::uint32_t at_once = blocks_at_once(info);
  const Nearest tuned = nearest(matrix_tuning(device), shape, tiled);
  MatrixPlan plan;
  if (tuned.product && tuned.distance < most_distance) {
    plan = tuned.product->plan;
  } else {
    plan.tile = (tiled ? direct_matrix_tile(info) : default_matrix_tile(info)).value();
  }
  const bool tuned_splits = tuned.product && tuned.distance < most_split_distance;
  const auto crosses = [&] {
    return std::any_of(ends.begin(), ends.end(), [&](std::uint32_t end) { return end % plan.tile.block_n != 0 && end != shape.columns; });
  };
  while (plan.tile.block_n > plan.tile.part_n && crosses()) plan.tile.block_n /= 2;
  if (tuned_splits || at_once == 1) return plan;
  plan.splits = 1;
  for (std::uint32_t splits = 2; splits <= most_splits; ++splits) {
    if (cost(shape, plan.tile, at_once, splits) < cost(shape, plan.tile, at_once, plan.splits)) plan.splits = splits;
  }
  return plan;
}

}  // namespace nibble
