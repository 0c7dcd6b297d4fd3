#include "nibble/kernels/rms_norm.h"

#include "nibble/base/error.h"
#include "nibble/kernels/row_kernel.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace nibble {
namespace {

using gpu::RowRange;

// As in the kernel.
struct RmsSumsParams {
  std::uint32_t whole = 0, splits = 0, down = 0, across = 0, band = 0, block_rows = 0, block_vectors = 0;
  float scale = 0;
};

struct RmsNormParams {
  RmsSumsParams sums{};
  std::uint32_t rows, columns, first_source, end_source;
  float epsilon;
};

// Where pairs of bindings begin that not every kernel has.
struct RmsBindings {
  std::uint32_t y = 5, packed = 9, sums = 11;
};

// Of a backward kernel, those that it has first: no other kernel of the text may have two in one place.
RmsBindings backward_bindings(bool y, bool packed, bool sums) {
  RmsBindings at;
  std::uint32_t next = 7;
  for (const bool here : {true, false}) {
    if (y == here) at.y = std::exchange(next, next + 2);
    if (packed == here) at.packed = std::exchange(next, next + 2);
    if (sums == here) at.sums = std::exchange(next, next + 2);
  }
  return at;
}

gpu::Kernel rms_kernel(gpu::Device& device, std::string_view entry, std::uint32_t columns, DType data, bool gather,
                       const RmsBindings& at, bool sums = false) {
  const RowKernel row_kernel(device, columns);
  const std::uint32_t kept = row_kernel.kept(columns / row_kernel.width, 4);
  gpu::Prelude prelude = row_kernel.prelude(data).constant("GATHER", gather).constant("KEPT", kept);
  prelude.constant("Y_AT", at.y).constant("PACKED_AT", at.packed).constant("SUMS_AT", at.sums);
  return row_kernel.kernel(device, "rms_norm", entry, prelude, sums ? "rms_dy_sums" : "rms_dy");
}

// The slices of x that a slice of y draws from.
std::vector<RowRange> source_slices(const gpu::Device& device, const Tensor& x, const Tensor& rows, RowRange slice) {
  if (!rows) return {slice};
  return gpu::binding_slices(device, x.dim(0), {std::uint64_t{x.dim(1)} * sizeof(float)});
}

// A binding cannot be left out: without `rows` the weight stands in for them, unread.
gpu::Binding rows_binding(const Tensor& rows, RowRange slice, const Tensor& weight) {
  return gpu::read(rows ? rows.rows(slice.begin, slice.end) : weight);
}

}  // namespace

void record(gpu::Recorder& recorder, const RmsNorm& op) {
  auto& device = recorder.device();
  const std::uint32_t columns = op.x.dim(1), rows = op.y.data.dim(0);
  expect_shape(op.x, DType::f32, {op.rows ? op.x.dim(0) : rows, columns}, "rms_norm", "x");
  expect_shape(op.weight, DType::f32, {columns}, "rms_norm", "weight");
  expect_shape(op.y, rows, columns, "rms_norm", "y");
  expect_shape(op.inv_rms, DType::f32, {rows}, "rms_norm", "inv_rms");
  if (op.rows) expect_shape(op.rows, DType::u32, {std::max(rows, op.rows.dim(0))}, "rms_norm", "rows");

  const std::uint64_t x_bytes = std::uint64_t{columns} * sizeof(float);
  const bool scaled = is_scaled(op.y);
  const auto entry = rms_kernel(device, scaled ? "forward_scaled" : "forward", columns, op.y.data.dtype(),
                                static_cast<bool>(op.rows), RmsBindings{});
  for (const auto slice : gpu::binding_slices(device, rows, {x_bytes, data_row_bytes(op.y), sizeof(float)})) {
    const std::uint32_t count = slice.end - slice.begin;
    const Operand y = operand_rows(op.y, slice);
    const gpu::Work work{.bytes = double(count) * double(x_bytes + data_row_bytes(op.y)), .flops = 4.0 * count * columns};
    for (const auto source : source_slices(device, op.x, op.rows, slice)) {
      const RmsNormParams params{.rows = count, .columns = columns, .first_source = source.begin, .end_source = source.end, .epsilon = op.eps};
      const auto x = gpu::read(op.x.rows(source.begin, source.end));
      const auto weight = gpu::read(op.weight), gathered = rows_binding(op.rows, slice, op.weight);
      // With several sources a dispatch writes only some rows.
      const auto inv_rms = gpu::read_write(op.inv_rms.rows(slice.begin, slice.end)), data = gpu::read_write(y.data);
      const auto grid = gpu::linear_grid(device, count);
      if (scaled) {
        recorder.dispatch(entry, {x, weight, gathered, inv_rms, data, gpu::read_write(y.scale)}, params, grid, work);
      } else {
        recorder.dispatch(entry, {x, weight, gathered, inv_rms, data}, params, grid, work);
      }
    }
  }
}

void record(gpu::Recorder& recorder, const RmsNormBackward& op) {
  auto& device = recorder.device();
  const std::uint32_t columns = op.x.dim(1), rows = op.dy.dim(0);
  expect_shape(op.dy, DType::f32, {rows, columns}, "rms_norm backward", "dy");
  expect_shape(op.x, DType::f32, {op.rows ? op.x.dim(0) : rows, columns}, "rms_norm backward", "x");
  expect_shape(op.weight, DType::f32, {columns}, "rms_norm backward", "weight");
  expect_shape(op.inv_rms, DType::f32, {rows}, "rms_norm backward", "inv_rms");
  expect_shape(op.dx, DType::f32, {op.x.dim(0), columns}, "rms_norm backward", "dx");
  if (op.rows) expect_shape(op.rows, DType::u32, {std::max(rows, op.rows.dim(0))}, "rms_norm backward", "rows");

  const bool packs = static_cast<bool>(op.packed.data), stores_y = static_cast<bool>(op.y.data), sums = static_cast<bool>(op.sums);
  check(!sums || (!op.rows && takes_split_sums(device, rows, columns)), "rms_norm backward", "Split sums of {} x {} are not taken.", rows, columns);
  for (const Operand& stored : {op.packed, op.y}) {
    if (!stored.data) continue;
    expect_shape(stored, rows, columns, "rms_norm backward", "what is stored in f16");
    check(is_scaled(stored) && !op.rows, "rms_norm backward", "Rows are stored in f16 and in their order alone.");
  }
  const std::string_view name = packs ? (stores_y ? "backward_packed_and_y" : "backward_packed")
                                      : (stores_y ? "backward_and_y" : "backward");
  const auto entry = rms_kernel(device, name, columns, packs || stores_y ? DType::f16 : DType::f32,
                                static_cast<bool>(op.rows), backward_bindings(stores_y, packs, sums), sums);
  const double stored_bytes = 2.0 * columns * (packs + stores_y);
  const double split_bytes = sums ? static_cast<double>(op.sums.partial.bytes()) : 0;
  const std::uint64_t row_bytes = std::uint64_t{columns} * sizeof(float);
  for (const auto slice : gpu::binding_slices(device, rows, {row_bytes, sizeof(float)})) {
    const std::uint32_t count = slice.end - slice.begin;
    for (const auto source : source_slices(device, op.x, op.rows, slice)) {
      std::vector<gpu::Binding> bindings{gpu::read(op.x.rows(source.begin, source.end)), gpu::read(op.weight),
                                         rows_binding(op.rows, slice, op.weight),
                                         gpu::read(op.inv_rms.rows(slice.begin, slice.end)),
                                         gpu::read(op.dy.rows(slice.begin, slice.end)),
                                         gpu::read_write(op.dx.rows(source.begin, source.end))};
      for (const Operand& stored : {op.y, op.packed}) {
        if (!stored.data) continue;
        const Operand part = operand_rows(stored, slice);
        bindings.insert(bindings.end(), {gpu::write(part.data), gpu::write(part.scale)});
      }
      RmsNormParams params{.rows = count, .columns = columns, .first_source = source.begin, .end_source = source.end, .epsilon = 0.0f};
      if (sums) {
        bindings.insert(bindings.end(), {gpu::read(op.sums.partial), gpu::read(op.sums.x_scale)});
        params.sums = {.whole = op.sums.whole, .splits = op.sums.splits, .down = op.sums.blocks_down, .across = op.sums.blocks_across,
                       .band = op.sums.band, .block_rows = op.sums.block_rows, .block_vectors = op.sums.block_vectors, .scale = op.sums.scale};
      }
      recorder.dispatch_bytes(entry, bindings, std::as_bytes(std::span(&params, 1)), gpu::linear_grid(device, count),
                              {.bytes = count * (4.0 * double(row_bytes) + stored_bytes) + split_bytes, .flops = 8.0 * count * columns});
    }
  }
}

bool takes_split_sums(const gpu::Device& device, std::uint32_t rows, std::uint32_t columns) {
  const gpu::Limits& limits = device.info().limits;
  constexpr std::uint32_t bindings = 12;
  return columns % 4 == 0 && limits.storage_bindings >= bindings && std::uint64_t{rows} * columns * sizeof(float) <= limits.max_binding - 16;
}

}  // namespace nibble
