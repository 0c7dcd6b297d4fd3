#include "nibble/kernels/largest.h"

#include "nibble/kernels/flat_kernel.h"
#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

struct LargestParams {
  std::uint32_t count;
};

}  // namespace

void record(gpu::Recorder& recorder, const Largest& op) {
  auto& device = recorder.device();
  const Tensor x = flat(op.x, "largest");
  expect_shape(x, DType::f32, {x.dim(0)}, "largest", "x");
  expect_shape(op.largest, DType::f32, {1}, "largest", "largest");
  if (!op.accumulate) recorder.clear(op.largest);
  const auto entry = flat_kernel(device, "largest", "main");
  for (const auto slice : gpu::binding_slices(device, x.dim(0), {sizeof(float)})) {
    const std::uint32_t count = slice.end - slice.begin;
    recorder.dispatch(entry, {gpu::read_write(op.largest), gpu::read(x.rows(slice.begin, slice.end))}, LargestParams{count},
                      flat_grid(device, count), {.bytes = 4.0 * count});
  }
}

}  // namespace nibble
