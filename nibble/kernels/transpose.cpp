#include "nibble/kernels/transpose.h"

#include "nibble/base/error.h"
#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

constexpr std::uint32_t side = 16, lines = 8;

struct TransposeParams {
  std::uint32_t rows, columns, all_rows, all_columns, first_row, first_column;
};

}  // namespace

void record(gpu::Recorder& recorder, const Transpose& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.x.dim(0), columns = op.x.dim(1);
  expect_shape(op.x, DType::f32, {rows, columns}, "transpose", "x");
  expect_shape(op.y, DType::f32, {columns, rows}, "transpose", "y");
  const auto entry = kernel(device, "transpose", gpu::Prelude().constant("SIDE", side).constant("LINES", lines));
  const std::uint32_t most = device.info().limits.workgroups_per_dimension * side;
  for (const auto x : gpu::binding_slices(device, rows, {std::uint64_t{columns} * sizeof(float)})) {
    for (const auto y : gpu::binding_slices(device, columns, {std::uint64_t{rows} * sizeof(float)})) {
      const std::uint32_t height = x.end - x.begin, width = y.end - y.begin;
      check(height <= most && width <= most, "transpose", "A matrix of {} x {} came; {} a side fit.", rows, columns, most);
      recorder.dispatch(entry, {gpu::read(op.x.rows(x.begin, x.end)), gpu::read_write(op.y.rows(y.begin, y.end))},
                        TransposeParams{height, width, rows, columns, x.begin, y.begin},
                        {(width + side - 1) / side, (height + side - 1) / side}, {.bytes = 8.0 * height * width});
    }
  }
}

}  // namespace nibble
