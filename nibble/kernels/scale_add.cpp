#include "nibble/kernels/scale_add.h"

#include "nibble/kernels/flat_kernel.h"
#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

struct ScaleAddParams {
  std::uint32_t count;
  float a, b;
};

}  // namespace

void record(gpu::Recorder& recorder, const ScaleAdd& op) {
  auto& device = recorder.device();
  const Tensor x = flat(op.x, "scale_add"), y = flat(op.y, "scale_add");
  expect_shape(x, DType::f32, {x.dim(0)}, "scale_add", "x");
  expect_shape(y, DType::f32, {x.dim(0)}, "scale_add", "y");
  const auto entry = flat_kernel(device, "scale_add", "main");
  for (const auto slice : gpu::binding_slices(device, x.dim(0), {sizeof(float)})) {
    const std::uint32_t count = slice.end - slice.begin;
    recorder.dispatch(entry, {gpu::read(x.rows(slice.begin, slice.end)), gpu::read_write(y.rows(slice.begin, slice.end))},
                      ScaleAddParams{count, op.a, op.b}, flat_grid(device, count), {.bytes = 12.0 * count, .flops = 3.0 * count});
  }
}

}  // namespace nibble
