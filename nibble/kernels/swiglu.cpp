#include "nibble/kernels/swiglu.h"

#include "nibble/base/error.h"
#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

struct SwigluParams {
  std::uint32_t rows, columns;
};

}  // namespace

void record(gpu::Recorder& recorder, const SwiGlu& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.gate.dim(0), columns = op.gate.dim(1);
  expect_shape(op.gate, DType::f32, {rows, columns}, "swiglu", "gate");
  expect_shape(op.up, DType::f32, {rows, columns}, "swiglu", "up");
  expect_shape(op.h, rows, columns, "swiglu", "h");

  const bool scaled = is_scaled(op.h);
  const RowKernel row_kernel(device, columns);
  const auto entry = row_kernel.kernel(device, "swiglu", scaled ? "forward_scaled" : "forward",
                                       row_kernel.prelude(op.h.data.dtype()));
  const std::uint64_t in_bytes = std::uint64_t{columns} * sizeof(float);
  for (const auto slice : gpu::binding_slices(device, rows, {in_bytes, data_row_bytes(op.h), scale_row_bytes(op.h)})) {
    const std::uint32_t count = slice.end - slice.begin;
    const auto gate = gpu::read(op.gate.rows(slice.begin, slice.end));
    const auto up = gpu::read(op.up.rows(slice.begin, slice.end));
    const Operand h = operand_rows(op.h, slice);
    const SwigluParams params{count, columns};
    const auto grid = gpu::linear_grid(device, count);
    const gpu::Work work{.bytes = double(count) * double(2 * in_bytes + data_row_bytes(op.h)),
                         .flops = 5.0 * count * columns};
    if (scaled) {
      recorder.dispatch(entry, {gate, up, gpu::write(h.data), gpu::write(h.scale)}, params, grid, work);
    } else {
      recorder.dispatch(entry, {gate, up, gpu::write(h.data)}, params, grid, work);
    }
  }
}

void record(gpu::Recorder& recorder, const SwiGluBackward& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.gate.dim(0), columns = op.gate.dim(1);
  expect_shape(op.dh, DType::f32, {rows, columns}, "swiglu backward", "dh");
  expect_shape(op.gate, DType::f32, {rows, columns}, "swiglu backward", "gate");
  expect_shape(op.up, DType::f32, {rows, columns}, "swiglu backward", "up");
  expect_shape(op.d_gate, rows, columns, "swiglu backward", "d_gate");
  expect_shape(op.d_up, rows, columns, "swiglu backward", "d_up");
  const bool scaled = is_scaled(op.d_gate);
  check(scaled == is_scaled(op.d_up), "swiglu backward", "One of d_gate and d_up is f16 and the other f32.");

  const RowKernel row_kernel(device, columns);
  const auto entry = row_kernel.kernel(device, "swiglu", scaled ? "backward_scaled" : "backward",
                                       row_kernel.prelude(op.d_gate.data.dtype()));
  const std::uint64_t in_bytes = std::uint64_t{columns} * sizeof(float);
  for (const auto slice :
       gpu::binding_slices(device, rows, {in_bytes, data_row_bytes(op.d_gate), scale_row_bytes(op.d_gate)})) {
    const std::uint32_t count = slice.end - slice.begin;
    const auto gate = gpu::read(op.gate.rows(slice.begin, slice.end));
    const auto up = gpu::read(op.up.rows(slice.begin, slice.end));
    const auto dh = gpu::read(op.dh.rows(slice.begin, slice.end));
    const Operand d_gate = operand_rows(op.d_gate, slice), d_up = operand_rows(op.d_up, slice);
    const SwigluParams params{count, columns};
    const auto grid = gpu::linear_grid(device, count);
    const gpu::Work work{.bytes = double(count) * double(3 * in_bytes + 2 * data_row_bytes(op.d_gate)),
                         .flops = 10.0 * count * columns};
    if (scaled) {
      recorder.dispatch(entry,
                        {gate, up, dh, gpu::write(d_gate.data), gpu::write(d_up.data), gpu::write(d_gate.scale),
                         gpu::write(d_up.scale)},
                        params, grid, work);
    } else {
      recorder.dispatch(entry, {gate, up, dh, gpu::write(d_gate.data), gpu::write(d_up.data)}, params, grid, work);
    }
  }
}

}  // namespace nibble
