#include "nibble/kernels/product_matrix.h"

#include "nibble/base/error.h"

#include <algorithm>

namespace nibble {
namespace {

using detail::MatrixLayout;

// The uniform of the text.
struct Params {
  std::uint32_t rows, columns, inner, x_stride, x_first, y_stride, y_first;
  float scale;
};

constexpr std::uint32_t vector_elements = 8;  // f16 of the 16 bytes that operands are read in

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

gpu::Kernel matrix_kernel(gpu::Device& device, const MatrixTile& tile, MatrixLayout layout, std::uint32_t inner, bool accumulate) {
  const bool whole_steps = inner % tile.block_k == 0;
  const char* name = layout == MatrixLayout::nt ? "product_matrix:nt" : "product_matrix:nn";
  const auto key = fmt::format("{} {} {} {}x{}x{} {}x{} {}x{}x{} {}", name, whole_steps, accumulate, tile.block_m, tile.block_n,
                               tile.block_k, tile.part_m, tile.part_n, tile.matrix.m, tile.matrix.n, tile.matrix.k, tile.subgroup);
  return device.kernel(key, name, "main",
                       [&] { return detail::matrix_text(tile, layout, whole_steps, accumulate); });
}

void record_blocks(gpu::Recorder& recorder, const MatrixTile& tile, const gpu::Kernel& kernel, const Operand& x, const Tensor& w,
                   const Tensor& y, const Params& params) {
  const auto blocks = [](std::uint32_t count, std::uint32_t block) { return std::uint64_t{(count + block - 1) / block}; };
  recorder.dispatch(kernel, {gpu::read(x.data), gpu::read(w), gpu::read_write(y), gpu::read(x.scale)}, params,
                    gpu::linear_grid(recorder.device(), blocks(params.rows, tile.block_m) * blocks(params.columns, tile.block_n)),
                    {.bytes = static_cast<double>(x.data.bytes() + w.bytes()) + 4.0 * params.rows * params.columns,
                     .flops = 2.0 * params.rows * params.columns * params.inner});
}

std::uint64_t row_bytes(const Tensor& tensor) { return std::uint64_t{tensor.dim(1)} * size_of(tensor.dtype()); }

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

bool matrix_fits(const gpu::Device& device, std::uint32_t outputs, std::uint32_t inputs) {
  return outputs % vector_elements == 0 && inputs % vector_elements == 0 && default_matrix_tile(device.info()).has_value();
}

void record_matrix_nt(gpu::Recorder& recorder, const MatrixProduct& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.x.data.dim(0), inputs = op.x.data.dim(1), outputs = op.w.data.dim(0);
  const MatrixTile tile = op.tile ? *op.tile : default_matrix_tile(device.info()).value();
  const auto kernel = matrix_kernel(device, tile, MatrixLayout::nt, inputs, op.accumulate);
  for (const auto range : gpu::binding_slices(device, rows, {row_bytes(op.x.data), row_bytes(op.y), 4})) {
    const Operand x{op.x.data.rows(range.begin, range.end), op.x.scale.rows(range.begin, range.end)};
    const Tensor y = op.y.rows(range.begin, range.end);
    for (const auto slice : gpu::binding_slices(device, outputs, {row_bytes(op.w.data)}, vector_elements)) {
      const Params params{.rows = range.end - range.begin,
                          .columns = slice.end - slice.begin,
                          .inner = inputs,
                          .x_stride = inputs,
                          .x_first = 0,
                          .y_stride = outputs,
                          .y_first = slice.begin,
                          .scale = op.w.scale};
      record_blocks(recorder, tile, kernel, x, op.w.data.rows(slice.begin, slice.end), y, params);
    }
  }
}

void record_matrix_nn(gpu::Recorder& recorder, const MatrixProduct& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.x.data.dim(0), outputs = op.x.data.dim(1), inputs = op.w.data.dim(1);
  const MatrixTile tile = op.tile ? *op.tile : default_matrix_tile(device.info()).value();
  for (const auto range : gpu::binding_slices(device, rows, {row_bytes(op.x.data), row_bytes(op.y), 4})) {
    const Operand x{op.x.data.rows(range.begin, range.end), op.x.scale.rows(range.begin, range.end)};
    const Tensor y = op.y.rows(range.begin, range.end);
    for (const auto slice : gpu::binding_slices(device, outputs, {row_bytes(op.w.data)}, vector_elements)) {
      const Params params{.rows = range.end - range.begin,
                          .columns = inputs,
                          .inner = slice.end - slice.begin,
                          .x_stride = outputs,
                          .x_first = slice.begin,
                          .y_stride = inputs,
                          .y_first = 0,
                          .scale = op.w.scale};
      const bool accumulate = op.accumulate || slice.begin > 0;
      const auto kernel = matrix_kernel(device, tile, MatrixLayout::nn, params.inner, accumulate);
      record_blocks(recorder, tile, kernel, x, op.w.data.rows(slice.begin, slice.end), y, params);
    }
  }
}

}  // namespace nibble
