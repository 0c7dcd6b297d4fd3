#include "nibble/kernels/add_bias.h"

#include "nibble/base/error.h"
#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

struct AddBiasParams {
  std::uint32_t rows, columns, first;
};

}  // namespace

void record(gpu::Recorder& recorder, const AddBias& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.y.data.dim(0), columns = op.y.data.dim(1);
  expect_shape(op.y, rows, columns, "add_bias", "y");
  check(op.bias && op.bias.dtype() == DType::f32 && op.first + std::uint64_t{columns} <= op.bias.size() && columns % 4 == 0 && op.first % 4 == 0,
        "add_bias", "A bias of {} elements was given for {} columns from {} on.", op.bias ? op.bias.size() : 0, columns, op.first);
  const bool scaled = is_scaled(op.y);
  const RowKernel row_kernel(device, columns);
  const auto entry = row_kernel.kernel(device, "add_bias", scaled ? "scaled" : "plain", row_kernel.prelude(op.y.data.dtype()));
  for (const auto slice : gpu::binding_slices(device, rows, {data_row_bytes(op.y), sizeof(float)})) {
    const Operand y = operand_rows(op.y, slice);
    const std::uint32_t count = slice.end - slice.begin;
    std::vector<gpu::Binding> bindings{gpu::read_write(y.data), gpu::read(op.bias)};
    if (scaled) bindings.push_back(gpu::read_write(y.scale));
    const AddBiasParams params{count, columns, op.first};
    recorder.dispatch_bytes(entry, bindings, std::as_bytes(std::span(&params, 1)), gpu::linear_grid(device, count),
                            {.bytes = 2.0 * count * static_cast<double>(data_row_bytes(op.y)), .flops = double(count) * columns});
  }
}

}  // namespace nibble
