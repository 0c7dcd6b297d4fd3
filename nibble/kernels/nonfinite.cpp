#include "nibble/kernels/nonfinite.h"

#include "nibble/kernels/flat_kernel.h"
#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

struct NonfiniteParams {
  std::uint32_t count, first;
};

}  // namespace

void record(gpu::Recorder& recorder, const NonFinite& op) {
  auto& device = recorder.device();
  const Tensor x = flat(op.x, "nonfinite");
  expect_shape(x, DType::f32, {x.dim(0)}, "nonfinite", "x");
  expect_shape(op.index, DType::u32, {1}, "nonfinite", "index");
  recorder.dispatch(flat_kernel(device, "nonfinite", "reset"), {gpu::write(op.index)}, NonfiniteParams{}, {});
  const auto scan = flat_kernel(device, "nonfinite", "scan");
  for (const auto slice : gpu::binding_slices(device, x.dim(0), {sizeof(float)})) {
    const std::uint32_t count = slice.end - slice.begin;
    recorder.dispatch(scan, {gpu::read_write(op.index), gpu::read(x.rows(slice.begin, slice.end))},
                      NonfiniteParams{count, slice.begin}, flat_grid(device, count), {.bytes = 4.0 * count});
  }
}

}  // namespace nibble
