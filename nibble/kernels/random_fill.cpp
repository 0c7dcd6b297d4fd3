#include "nibble/kernels/random_fill.h"

#include "nibble/base/error.h"
#include "nibble/kernels/flat_kernel.h"

namespace nibble {
namespace {

struct RandomFillParams {
  std::uint32_t count, first, seed;
  float deviation;
};

}  // namespace

void record(gpu::Recorder& recorder, const RandomFill& op) {
  auto& device = recorder.device();
  const Tensor x = flat(op.x, "random_fill");
  const DType dtype = x.dtype();
  check(dtype == DType::f32 || dtype == DType::f16 || dtype == DType::u32, "random_fill",
        "The type {} cannot be filled, only f32, f16 and u32.", name_of(dtype));
  gpu::Prelude prelude;
  if (dtype == DType::f16) prelude.enable("f16");
  prelude.alias("Data", name_of(dtype));
  const auto entry = flat_kernel(device, "random_fill", dtype == DType::u32 ? "words" : "normal", prelude, {"grid", "random"});
  for (const auto slice : gpu::binding_slices(device, x.dim(0), {size_of(dtype)})) {
    const std::uint32_t count = slice.end - slice.begin;
    recorder.dispatch(entry, {gpu::write(x.rows(slice.begin, slice.end))}, RandomFillParams{count, slice.begin, op.seed, op.deviation},
                      flat_grid(device, count), {.bytes = double(count) * double(size_of(dtype))});
  }
}

}  // namespace nibble
