#include "nibble/kernels/expert_matrix.h"

#include "nibble/base/error.h"
#include "nibble/base/half.h"
#include "nibble/kernels/product_matrix.h"
#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

using detail::MatrixOutput;
using detail::MatrixText;

// The uniform of the text, of which experts leave much at zero.
struct ExpertMatrixParams {
  std::uint32_t rows, columns, inner, x_stride, x_first = 0, y_stride, y_first = 0;
  std::uint32_t one = 1;
  std::uint32_t tail_inner = 0, left_stride = 0, first_end = 0, second_end = 0;
  std::uint32_t band = 1;
  float scale;
  std::uint32_t whole = 0, splits = 1, split_steps = 0;
  std::uint32_t tiles, first_expert, bound_experts;
  float factor;
};

gpu::Kernel kernel_of(gpu::Device& device, const MatrixTile& tile, const MatrixText& text) {
  const char* name = text.layout == MatrixLayout::nt ? "expert_matrix:nt" : "expert_matrix:nn";
  const auto key = fmt::format("{} {} {} {} {} {}x{}x{} {}x{} {}x{}x{} {}", name, static_cast<int>(text.output), text.whole_steps, static_cast<int>(text.codes), text.per_token,
                               tile.block_m, tile.block_n, tile.block_k, tile.part_m, tile.part_n, tile.matrix.m, tile.matrix.n, tile.matrix.k,
                               tile.subgroup);
  return device.kernel(key, name, "main", [&] { return detail::matrix_text(tile, text); });
}

void record_product(gpu::Recorder& recorder, const ExpertMatrixProduct& op, MatrixLayout layout) {
  auto& device = recorder.device();
  const std::string_view where = layout == MatrixLayout::nt ? "expert_matrix_nt" : "expert_matrix_nn";
  const ExpertRows& rows = op.rows;
  const std::uint32_t x_rows = op.by_token ? rows.slots / rows.per_token : rows.slots, inner = op.x.data.dim(1), columns = op.y.dim(1);
  expect_shape(op.x, x_rows, inner, where, "x");
  expect_shape(op.y, DType::f32, {rows.slots, columns}, where, "y");
  const std::uint64_t count = std::uint64_t{inner} * columns, all = count * rows.experts;
  const auto tile = expert_matrix_tile(device.info(), rows.experts, rows.slots);
  check(is_scaled(op.x) && inner % 8 == 0 && columns % 8 == 0 && all <= UINT32_MAX && op.w.packed.bytes() * 2 == all && op.w.absmax.size() * 64 == all,
        where, "Shapes do not fit {} experts: x {}, y {}, {} packed bytes and {} block maxima.", rows.experts, op.x.data.shape_text(),
        op.y.shape_text(), op.w.packed.bytes(), op.w.absmax.size());
  check(tile && tile->block_m == rows.tile_rows, where, "The rows of experts are not sorted in tiles for matrix units but of {}.", rows.tile_rows);
  const MatrixText text{.layout = layout, .output = op.accumulate ? MatrixOutput::accumulate : MatrixOutput::write,
                        .whole_steps = inner % tile->block_k == 0, .experts = true, .codes = op.w.codes, .per_token = op.by_token ? rows.per_token : 0};
  const float factor = top_of_f16(op.largest);
  const std::uint32_t tiles = rows.tiles.dim(0), across = (columns + tile->block_n - 1) / tile->block_n;
  for (const auto part : gpu::binding_slices(device, rows.experts, {count / 2, count / 16})) {
    const std::uint32_t experts = part.end - part.begin;
    const auto of = [&](const Tensor& tensor) {
      const std::uint64_t size = tensor.size() / rows.experts;
      return gpu::read(tensor.part(part.begin * size, {static_cast<std::uint32_t>(experts * size)}));
    };
    const double share = static_cast<double>(experts) / rows.experts;
    recorder.dispatch(kernel_of(device, *tile, text),
                      {gpu::read(op.x.data), of(op.w.packed), gpu::read_write(op.y), gpu::read(op.x.scale), of(op.w.absmax), gpu::read(rows.tiles),
                       gpu::read(rows.slot_of_row)},
                      ExpertMatrixParams{.rows = x_rows, .columns = columns, .inner = inner, .x_stride = inner, .y_stride = columns, .scale = 1.0f / factor,
                             .tiles = tiles, .first_expert = part.begin, .bound_experts = experts, .factor = factor},
                      gpu::linear_grid(device, std::uint64_t{tiles} * across),
                      {.bytes = share * static_cast<double>(op.x.data.bytes() + op.y.bytes() + op.w.packed.bytes()),
                       .flops = share * 2.0 * inner * static_cast<double>(op.y.size())});
  }
}

}  // namespace

void record_matrix_nt(gpu::Recorder& recorder, const ExpertMatrixProduct& op) { record_product(recorder, op, MatrixLayout::nt); }

void record_matrix_nn(gpu::Recorder& recorder, const ExpertMatrixProduct& op) { record_product(recorder, op, MatrixLayout::nn); }

std::optional<MatrixTile> expert_matrix_tile(const gpu::AdapterInfo& info, std::uint32_t experts, std::uint32_t slots) {
  auto tile = default_matrix_tile(info);
  if (!tile) return std::nullopt;
  // Half as many rows leave fewer of them empty, and decode each weight for fewer.
  if (tile->block_m > tile->part_m && slots / experts < 2 * tile->block_m) tile->block_m /= 2;
  if (2ull * slots < std::uint64_t{experts} * tile->block_m) return std::nullopt;
  return tile;
}

}  // namespace nibble
