#include "nibble/kernels/neftune.h"

#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

struct NeftuneParams {
  std::uint32_t rows, columns, first_row, seed;
  float alpha;
};

}  // namespace

void record(gpu::Recorder& recorder, const Neftune& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.x.dim(0), columns = op.x.dim(1);
  expect_shape(op.x, DType::f32, {rows, columns}, "neftune", "x");
  expect_shape(op.segment_begin, DType::u32, {rows}, "neftune", "segment_begin");
  expect_shape(op.segment_end, DType::u32, {rows}, "neftune", "segment_end");
  const auto prelude = gpu::Prelude().constant("WORKGROUP", RowKernel(device, columns).workgroup);
  const auto entry = kernel(device, "neftune", prelude, {"grid", "random"});
  const std::uint64_t x_bytes = std::uint64_t{columns} * sizeof(float);
  for (const auto slice : gpu::binding_slices(device, rows, {x_bytes, sizeof(std::uint32_t)})) {
    const auto part = [&](const Tensor& tensor) { return tensor.rows(slice.begin, slice.end); };
    const std::uint32_t count = slice.end - slice.begin;
    recorder.dispatch(entry, {gpu::read(part(op.segment_begin)), gpu::read(part(op.segment_end)), gpu::read_write(part(op.x))},
                      NeftuneParams{count, columns, slice.begin, op.seed, op.alpha}, gpu::linear_grid(device, count),
                      {.bytes = 2.0 * double(count) * double(x_bytes)});
  }
}

}  // namespace nibble
