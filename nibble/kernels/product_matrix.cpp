#include "nibble/kernels/product_matrix.h"

#include "nibble/base/error.h"
#include "nibble/kernels/carry.h"
#include "nibble/kernels/kernel.h"

#include <algorithm>
#include <array>

namespace nibble {
namespace {

using detail::MatrixOutput;
using detail::MatrixText;

// The uniform of the text.
struct ProductMatrixParams {
  std::uint32_t rows, columns, inner, x_stride, x_first, y_stride, y_first;
  std::uint32_t one = 1;
  std::uint32_t tail_inner = 0, left_stride = 0, first_end = 0, second_end = 0;
  std::uint32_t band = 1;
  float scale;
  std::uint32_t whole = 0, splits = 1, split_steps = 0;
  std::uint32_t carriers = 0, cargo_first = 0, cargo_rounds = 0;
};

// That of product_splits.wgsl.
struct SplitParams {
  std::uint32_t rows, vectors, whole, splits, blocks_down, blocks_across, band, block_rows, block_vectors, y_vectors, y_first;
  float scale;
};

constexpr std::uint32_t vector_elements = 8;  // f16 of the 16 bytes that operands are read in

gpu::Kernel matrix_kernel(gpu::Device& device, const MatrixTile& tile, const MatrixText& text) {
  const char* name = text.layout == MatrixLayout::nt ? "product_matrix:nt" : "product_matrix:nn";
  const auto key = fmt::format("{} {} {} {} {} {} {} {}x{}x{} {}x{} {}x{}x{} {} {} {}", name, static_cast<int>(text.output), text.whole_steps,
                               text.tail_step, text.splits, text.carries, text.decodes ? static_cast<int>(text.codes) : -1, tile.block_m, tile.block_n, tile.block_k, tile.part_m, tile.part_n, tile.matrix.m,
                               tile.matrix.n, tile.matrix.k, tile.subgroup, tile.direct, tile.two_sets);
  return device.kernel(key, name, "main", [&] { return detail::matrix_text(tile, text); });
}

// The tensors of one dispatch.
struct Slice {
  Operand x;
  Tensor w, y, y_scale, plus, left, right;
  MatrixOutput output;
  Tensor absmax = {};  // of codes
  CodeBook codes = CodeBook::nf4;
  Tensor partial = {};  // where blocks may be split
};

std::uint32_t quotient_up(std::uint32_t count, std::uint32_t size) { return (count + size - 1) / size; }

void record_blocks(gpu::Recorder& recorder, const MatrixTile& tile, MatrixLayout layout, const Slice& s, ProductMatrixParams params,
                   std::uint32_t workgroups) {
  std::vector<gpu::Binding> bindings{gpu::read(s.x.data), gpu::read(s.w), gpu::read_write(s.y), gpu::read(s.x.scale)};
  if (s.output == MatrixOutput::plus) bindings.push_back(gpu::read(s.plus));
  if (s.output == MatrixOutput::f16) bindings.push_back(gpu::write(s.y_scale));
  MatrixText text{.layout = layout, .output = s.output, .whole_steps = params.inner % tile.block_k == 0,
                  .decodes = static_cast<bool>(s.absmax), .codes = s.codes, .splits = static_cast<bool>(s.partial)};
  if (s.left) {
    bindings.push_back(gpu::read(s.left));
    bindings.push_back(gpu::read(s.right));
    text.tail_step = std::min(tile.block_k, params.tail_inner);
  }
  if (s.partial) bindings.push_back(gpu::write(s.partial));
  const double elements = static_cast<double>(params.rows) * params.columns, flops = 2.0 * elements * (params.inner + params.tail_inner);
  if (const Carry carry = take_cargo(recorder.device(), flops, bindings.size() + (s.absmax ? 1 : 0), tile.invocations())) {
    bindings.push_back(gpu::read(carry.from));
    bindings.push_back(gpu::write(carry.to));
    text.carries = true;
    params.carriers = carry.carriers, params.cargo_first = carry.first_vector, params.cargo_rounds = carry.rounds;
  }
  if (s.absmax) bindings.push_back(gpu::read(s.absmax));
  recorder.dispatch_bytes(matrix_kernel(recorder.device(), tile, text), bindings, std::as_bytes(std::span(&params, 1)),
                          gpu::linear_grid(recorder.device(), workgroups + params.carriers),
                          {.bytes = static_cast<double>(s.x.data.bytes() + s.w.bytes()) +
                                    elements * static_cast<double>(size_of(s.y.dtype())) +
                                    (s.partial ? static_cast<double>(s.partial.bytes()) : 0.0),
                           .flops = flops});
}

// The second pass of blocks that were split.
void record_sums(gpu::Recorder& recorder, const MatrixTile& tile, const Slice& s, const ProductMatrixParams& p, const MatrixBlocks& blocks) {
  constexpr std::array entries{"write", "accumulate", "plus", "rows_in_f16"};
  const SplitParams params{.rows = p.rows, .vectors = p.columns / 4, .whole = p.whole, .splits = p.splits,
                           .blocks_down = blocks.down, .blocks_across = blocks.across, .band = p.band,
                           .block_rows = tile.block_m, .block_vectors = tile.block_n / 4, .y_vectors = p.y_stride / 4,
                           .y_first = p.y_first / 4, .scale = p.scale};
  std::vector<gpu::Binding> bindings{gpu::read(s.partial), gpu::read(s.x.scale), gpu::read_write(s.y)};
  if (s.output == MatrixOutput::plus) bindings.push_back(gpu::read(s.plus));
  const auto prelude = gpu::Prelude().enable("f16").alias("Y", name_of(s.y.dtype()));
  const std::uint64_t vectors = std::uint64_t{blocks.split()} * params.block_rows * params.block_vectors;
  recorder.dispatch_bytes(
      kernel(recorder.device(), "product_splits", prelude, {"grid", "bands"}, entries.at(static_cast<std::size_t>(s.output))), bindings,
      std::as_bytes(std::span(&params, 1)), gpu::linear_grid(recorder.device(), (vectors + 255) / 256),
      {.bytes = static_cast<double>(vectors) * (16.0 * p.splits + 4.0 * static_cast<double>(size_of(s.y.dtype())))});
}

SplitSums sums_left(const MatrixTile& tile, const Slice& s, const ProductMatrixParams& p, const MatrixBlocks& blocks) {
  return {.partial = s.partial, .x_scale = s.x.scale, .whole = p.whole, .splits = p.splits, .blocks_down = blocks.down,
          .blocks_across = blocks.across, .band = p.band, .block_rows = tile.block_m, .block_vectors = tile.block_n / 4, .scale = p.scale};
}

// One dispatch, or two where blocks are split, there is room for their partial sums, and nobody is there to whom these may be left.
void record_slice(gpu::Recorder& recorder, const MatrixPlan& plan, MatrixLayout layout, Slice s, ProductMatrixParams params, const Tensor& scratch,
                  SplitSums* left = nullptr) {
  const MatrixTile& tile = plan.tile;
  const MatrixBlocks blocks = blocks_of(plan, params.rows, params.columns);
  params.band = tile.band;
  params.whole = blocks.count();
  const std::uint64_t sums = std::uint64_t{blocks.split()} * tile.block_m * tile.block_n;
  const std::uint64_t room = scratch && sums > 0 ? scratch.size() / sums : 0;
  const std::uint32_t steps = quotient_up(params.inner, tile.block_k);
  const auto wanted = static_cast<std::uint32_t>(std::min<std::uint64_t>({plan.splits, room, steps}));
  if (wanted <= 1) {
    // Of a plan that splits, the same kernels: batches of other lengths have blocks to split.
    if (plan.splits > 1 && scratch) s.partial = scratch.part(0, {4});
    if (left && s.partial) *left = sums_left(tile, s, params, blocks);
    return record_blocks(recorder, tile, layout, s, params, blocks.count());
  }
  params.whole = blocks.whole;
  params.split_steps = quotient_up(steps, wanted);
  params.splits = quotient_up(steps, params.split_steps);
  s.partial = scratch.part(0, {static_cast<std::uint32_t>(params.splits * sums)});
  record_blocks(recorder, tile, layout, s, params, blocks.whole + blocks.split() * params.splits);
  if (left) {
    *left = sums_left(tile, s, params, blocks);
  } else {
    record_sums(recorder, tile, s, params, blocks);
  }
}

MatrixOutput output_of(const MatrixProduct& op) {
  if (op.y_scale) return MatrixOutput::f16;
  if (op.plus) return MatrixOutput::plus;
  return op.accumulate ? MatrixOutput::accumulate : MatrixOutput::write;
}

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
  // Blocks shrink to their parts.
  const std::uint32_t block = default_matrix_tile(device.info())->part_n;
  return std::is_sorted(ends.begin(), ends.end()) && (ends.empty() || ends.back() == outputs) &&
         std::all_of(ends.begin(), ends.end(), [&](std::uint32_t end) { return end > 0 && (end % block == 0 || end == outputs); });
}

namespace {

MatrixPlan plan_of(gpu::Recorder& recorder, const MatrixProduct& op, const MatrixShape& shape, std::span<const std::uint32_t> ends = {}) {
  MatrixShape planned = shape;
  if (op.plan_rows > 0) planned.rows = op.plan_rows;
  MatrixPlan plan = op.w.absmax ? decoding_plan(recorder.device().info(), planned, ends) : matrix_plan(recorder.device(), planned, op.w.tile > 0, ends);
  if (op.tile) plan.tile = *op.tile;
  if (op.splits) plan.splits = *op.splits, plan.wave = op.wave;
  check(plan.tile.direct == (op.w.tile > 0) && (!plan.tile.direct || op.w.tile == plan.tile.matrix.m), "product_matrix",
        "A weight in tiles of {} came to a kernel for tiles of {}.", op.w.tile, plan.tile.direct ? plan.tile.matrix.m : 0);
  check(op.w.tile == 0 || op.w.turned == (shape.layout == MatrixLayout::nn), "product_matrix",
        "Tiles must be those of the transpose for NN, and of the weight for NT.");
  for (const std::uint32_t end : ends) {
    check(end % plan.tile.block_n == 0 || end == shape.columns, "product_matrix",
          "A projection ends at column {} of {}, within a block of {}.", end, shape.columns, plan.tile.block_n);
  }
  return plan;
}

}  // namespace

void record_matrix_nt(gpu::Recorder& recorder, const MatrixProduct& op) {
  auto& device = recorder.device();
  const std::uint32_t inputs = op.x.data.dim(1), outputs = op.w.data.dim(0);
  const std::uint64_t right_bytes = op.lora.right ? row_bytes(op.lora.right) : row_bytes(op.w.data);
  const std::uint64_t absmax_bytes = op.w.absmax ? row_bytes(op.w.absmax) : row_bytes(op.w.data);
  const auto ends = op.lora.right ? std::span<const std::uint32_t>(op.lora.ends) : std::span<const std::uint32_t>();
  for (const auto range : row_slices(device, op)) {
    Slice part = slice_of(op, range);
    const MatrixPlan plan = plan_of(recorder, op, {MatrixLayout::nt, range.end - range.begin, outputs, inputs}, ends);
    for (const auto columns : gpu::binding_slices(device, outputs, {row_bytes(op.w.data), right_bytes, absmax_bytes}, plan.tile.block_n)) {
      part.w = rows_of(op.w.data, columns);
      part.right = rows_of(op.lora.right, columns);
      part.absmax = rows_of(op.w.absmax, columns), part.codes = op.w.codes;
      record_slice(recorder, plan, MatrixLayout::nt, part,
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
                    .scale = op.w.scale},
                   op.scratch);
    }
  }
}

void record_matrix_nn(gpu::Recorder& recorder, const MatrixProduct& op) {
  auto& device = recorder.device();
  const std::uint32_t outputs = op.x.data.dim(1), inputs = op.w.data.dim(1);
  const auto all_rows = row_slices(device, op);
  for (const auto range : all_rows) {
    Slice part = slice_of(op, range);
    const auto all_inner = gpu::binding_slices(device, outputs, {row_bytes(op.w.data)}, vector_elements);
    check(op.w.tile == 0 || all_inner.size() == 1, "product_matrix", "A weight {} in tiles exceeds a binding.", op.w.data.shape_text());
    for (const auto inner : all_inner) {
      part.w = rows_of(op.w.data, inner);
      part.right = inner.begin == 0 ? op.lora.right : Tensor{};
      if (inner.begin > 0) {
        part.output = MatrixOutput::accumulate;
        part.left = {};
      }
      const MatrixPlan plan = plan_of(recorder, op, {MatrixLayout::nn, range.end - range.begin, inputs, inner.end - inner.begin});
      record_slice(recorder, plan, MatrixLayout::nn, part,
                   {.rows = range.end - range.begin,
                    .columns = inputs,
                    .inner = inner.end - inner.begin,
                    .x_stride = outputs,
                    .x_first = inner.begin,
                    .y_stride = inputs,
                    .y_first = 0,
                    .tail_inner = part.right ? part.right.dim(0) : 0,
                    .left_stride = part.right ? part.right.dim(0) : 0,
                    .scale = op.w.scale},
                   op.scratch, all_rows.size() == 1 && all_inner.size() == 1 && part.output == MatrixOutput::write ? op.sums : nullptr);
    }
  }
}

}  // namespace nibble
