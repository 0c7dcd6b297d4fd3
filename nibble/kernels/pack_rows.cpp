#include "nibble/kernels/pack_rows.h"

#include "nibble/base/error.h"
#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

struct PackRowsParams {
  std::uint32_t rows, columns;
};

}  // namespace

void record(gpu::Recorder& recorder, const PackRows& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.x.dim(0), columns = op.x.dim(1);
  expect_shape(op.x, DType::f32, {rows, columns}, "pack_rows", "x");
  check(is_scaled(op.y), "pack_rows", "The result has no scales; it must be an f16 operand.");
  expect_shape(op.y, rows, columns, "pack_rows", "y");

  const RowKernel row_kernel(device, columns);
  const auto entry = row_kernel.kernel(device, "pack_rows", "main", row_kernel.prelude(DType::f16));
  const std::uint64_t x_bytes = std::uint64_t{columns} * sizeof(float);
  for (const auto slice : gpu::binding_slices(device, rows, {x_bytes, data_row_bytes(op.y), sizeof(float)})) {
    const std::uint32_t count = slice.end - slice.begin;
    const Operand y = operand_rows(op.y, slice);
    recorder.dispatch(entry, {gpu::read(op.x.rows(slice.begin, slice.end)), gpu::write(y.data), gpu::write(y.scale)},
                      PackRowsParams{count, columns}, gpu::linear_grid(device, count),
                      {.bytes = double(count) * double(x_bytes + data_row_bytes(op.y)), .flops = double(count) * columns});
  }
}

Operand as_operand(gpu::Recorder& recorder, const Tensor& x, const Operand& storage) {
  if (!is_scaled(storage)) return {x, {}};
  const Operand y = first_rows(storage, x.dim(0));
  record(recorder, PackRows{.x = x, .y = y});
  return y;
}

}  // namespace nibble
