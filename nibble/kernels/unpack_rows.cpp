#include "nibble/kernels/unpack_rows.h"

#include "nibble/base/error.h"
#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

struct UnpackRowsParams {
  std::uint32_t rows, columns;
};

}  // namespace

void record(gpu::Recorder& recorder, const UnpackRows& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.y.dim(0), columns = op.y.dim(1);
  expect_shape(op.y, DType::f32, {rows, columns}, "unpack_rows", "y");
  check(is_scaled(op.x), "unpack_rows", "x has no scales; it must be an f16 operand.");
  expect_shape(op.x, rows, columns, "unpack_rows", "x");
  const RowKernel row_kernel(device, columns);
  const auto entry = row_kernel.kernel(device, "unpack_rows", "main", row_kernel.prelude(DType::f16));
  const std::uint64_t y_bytes = std::uint64_t{columns} * sizeof(float);
  for (const auto slice : gpu::binding_slices(device, rows, {y_bytes, data_row_bytes(op.x), sizeof(float)})) {
    const std::uint32_t count = slice.end - slice.begin;
    const Operand x = operand_rows(op.x, slice);
    recorder.dispatch(entry, {gpu::read(x.data), gpu::read(x.scale), gpu::write(op.y.rows(slice.begin, slice.end))},
                      UnpackRowsParams{count, columns}, gpu::linear_grid(device, count),
                      {.bytes = double(count) * double(y_bytes + data_row_bytes(op.x))});
  }
}

}  // namespace nibble
