#include "nibble/kernels/product_matrix.h"

#include "nibble/base/error.h"

#include <algorithm>

namespace nibble {
namespace {

using detail::MatrixLayout;
using detail::MatrixOutput;
using detail::MatrixText;

// The uniform of the text.
struct Params {
  std::uint32_t rows, columns, inner, x_stride, x_first, y_stride, y_first;
  std::uint32_t one = 1;
  std::uint32_t tail_inner = 0, left_stride = 0, first_end = 0, second_end = 0;
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

gpu::Kernel matrix_kernel(gpu::Device& device, const MatrixTile& tile, const MatrixText& text) {
  const char* name = text.layout == MatrixLayout::nt ? "product_matrix:nt" : "product_matrix:nn";
  const auto key = fmt::format("{} {} {} {} {}x{}x{} {}x{} {}x{}x{} {} {}", name, static_cast<int>(text.output), text.whole_steps,
                               text.tail_step, tile.block_m, tile.block_n, tile.block_k, tile.part_m, tile.part_n, tile.matrix.m,
                               tile.matrix.n, tile.matrix.k, tile.subgroup, tile.band);
  return device.kernel(key, name, "main", [&] { return detail::matrix_text(tile, text); });
}

// The tensors of one dispatch.
struct Slice {
  Operand x;
  Tensor w, y, y_scale, plus, left, right;
  MatrixOutput output;
};

void record_blocks(gpu::Recorder& recorder, const MatrixTile& tile, MatrixLayout layout, const Slice& s, const Params& params) {
  std::vector<gpu::Binding> bindings{gpu::read(s.x.data), gpu::read(s.w), gpu::read_write(s.y), gpu::read(s.x.scale)};
  if (s.output == MatrixOutput::plus) bindings.push_back(gpu::read(s.plus));
  if (s.output == MatrixOutput::f16) bindings.push_back(gpu::write(s.y_scale));
  MatrixText text{.layout = layout, .output = s.output, .whole_steps = params.inner % tile.block_k == 0};
  if (s.left) {
    bindings.push_back(gpu::read(s.left));
    bindings.push_back(gpu::read(s.right));
    text.tail_step = std::min(tile.block_k, params.tail_inner);
  }
  const auto kernel = matrix_kernel(recorder.device(), tile, text);
  const auto blocks = [](std::uint32_t count, std::uint32_t block) { return std::uint64_t{(count + block - 1) / block}; };
  const auto grid = gpu::linear_grid(recorder.device(), blocks(params.rows, tile.block_m) * blocks(params.columns, tile.block_n));
  const double elements = static_cast<double>(params.rows) * params.columns;
  recorder.dispatch_bytes(kernel, bindings, std::as_bytes(std::span(&params, 1)), grid,
                          {.bytes = static_cast<double>(s.x.data.bytes() + s.w.bytes()) +
                                    elements * static_cast<double>(size_of(s.y.dtype())),
                           .flops = 2.0 * elements * (params.inner + params.tail_inner)});
}

MatrixOutput output_of(const MatrixProduct& op) {
  if (op.y_scale) return MatrixOutput::f16;
  if (op.plus) return MatrixOutput::plus;
  return op.accumulate ? MatrixOutput::accumulate : MatrixOutput::write;
}

std::uint64_t row_bytes(const Tensor& tensor) { return tensor ? std::uint64_t{tensor.dim(1)} * size_of(tensor.dtype()) : 0; }

Tensor rows_of(const Tensor& tensor, gpu::RowRange range) { return tensor ? tensor.rows(range.begin, range.end) : Tensor{}; }

// What the rows `range` of x and y take part in, without weights.
Slice slice_of(const MatrixProduct& op, gpu::RowRange range) {
  return {.x = {rows_of(op.x.data, range), rows_of(op.x.scale, range)},
          .w = {},
          .y = rows_of(op.y, range),
          .y_scale = rows_of(op.y_scale, range),
          .plus = rows_of(op.plus, range),
          .left = rows_of(op.lora.left, range),
          .right = {},
          .output = output_of(op)};
}

std::vector<gpu::RowRange> row_slices(const gpu::Device& device, const MatrixProduct& op) {
  const auto& left = op.lora.left;
  return gpu::binding_slices(device, op.x.data.dim(0),
                             {row_bytes(op.x.data), row_bytes(op.y), 4, left ? row_bytes(left) : row_bytes(op.x.data)});
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

bool matrix_fits(const gpu::Device& device, std::uint32_t outputs, std::uint32_t inputs) {
  return outputs % vector_elements == 0 && inputs % vector_elements == 0 && default_matrix_tile(device.info()).has_value();
}

// A weight of several bindings would have NN add to what it wrote.
bool f16_outputs_fit(const gpu::Device& device, ProductPath path, std::uint32_t outputs, std::uint32_t inputs) {
  return path == ProductPath::matrix && matrix_fits(device, outputs, inputs) &&
         std::uint64_t{outputs} * inputs * 2 <= device.info().limits.max_binding;
}

bool lora_tail_fits(const gpu::Device& device, std::uint32_t outputs, std::uint32_t inputs, std::span<const std::uint32_t> ends) {
  if (!matrix_fits(device, outputs, inputs)) return false;
  const std::uint32_t block = default_matrix_tile(device.info())->block_n;
  return std::is_sorted(ends.begin(), ends.end()) && (ends.empty() || ends.back() == outputs) &&
         std::all_of(ends.begin(), ends.end(), [&](std::uint32_t end) { return end > 0 && (end % block == 0 || end == outputs); });
}

void record_matrix_nt(gpu::Recorder& recorder, const MatrixProduct& op) {
  auto& device = recorder.device();
  const std::uint32_t inputs = op.x.data.dim(1), outputs = op.w.data.dim(0);
  const MatrixTile tile = op.tile ? *op.tile : default_matrix_tile(device.info()).value();
  const std::uint64_t right_bytes = op.lora.right ? row_bytes(op.lora.right) : row_bytes(op.w.data);
  for (const auto range : row_slices(device, op)) {
    Slice part = slice_of(op, range);
    for (const auto columns : gpu::binding_slices(device, outputs, {row_bytes(op.w.data), right_bytes}, tile.block_n)) {
      part.w = rows_of(op.w.data, columns);
      part.right = rows_of(op.lora.right, columns);
      record_blocks(recorder, tile, MatrixLayout::nt, part,
                    {.rows = range.end - range.begin,
                     .columns = columns.end - columns.begin,
                     .inner = inputs,
                     .x_stride = inputs,
                     .x_first = 0,
                     .y_stride = outputs,
                     .y_first = columns.begin,
                     .tail_inner = op.lora.right ? op.lora.right.dim(1) : 0,
                     .left_stride = op.lora.left ? op.lora.left.dim(1) : 0,
                     .first_end = op.lora.ends[0],
                     .second_end = op.lora.ends[1],
                     .scale = op.w.scale});
    }
  }
}

void record_matrix_nn(gpu::Recorder& recorder, const MatrixProduct& op) {
  auto& device = recorder.device();
  const std::uint32_t outputs = op.x.data.dim(1), inputs = op.w.data.dim(1);
  const MatrixTile tile = op.tile ? *op.tile : default_matrix_tile(device.info()).value();
  for (const auto range : row_slices(device, op)) {
    Slice part = slice_of(op, range);
    for (const auto inner : gpu::binding_slices(device, outputs, {row_bytes(op.w.data)}, vector_elements)) {
      part.w = rows_of(op.w.data, inner);
      part.right = inner.begin == 0 ? op.lora.right : Tensor{};
      if (inner.begin > 0) {
        part.output = MatrixOutput::accumulate;
        part.left = {};
      }
      record_blocks(recorder, tile, MatrixLayout::nn, part,
                    {.rows = range.end - range.begin,
                     .columns = inputs,
                     .inner = inner.end - inner.begin,
                     .x_stride = outputs,
                     .x_first = inner.begin,
                     .y_stride = inputs,
                     .y_first = 0,
                     .tail_inner = part.right ? part.right.dim(0) : 0,
                     .left_stride = part.right ? part.right.dim(0) : 0,
                     .scale = op.w.scale});
    }
  }
}

}  // namespace nibble
