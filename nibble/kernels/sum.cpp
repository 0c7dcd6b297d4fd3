#include "nibble/kernels/sum.h"

#include "nibble/base/error.h"
#include "nibble/kernels/flat_kernel.h"
#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

struct SumParams {
  std::uint32_t count, slot, accumulate;
};

}  // namespace

void record(gpu::Recorder& recorder, const Sum& op) {
  auto& device = recorder.device();
  const Tensor x = flat(op.x, "sum");
  check(x.dtype() == DType::f32 || x.dtype() == DType::u32, "sum", "The type {} cannot be summed, only f32 and u32.",
        name_of(x.dtype()));
  check(op.slot < op.total.size() && size_of(op.total.dtype()) == 4, "sum", "Slot {} is not within shape {}.", op.slot,
        op.total.shape_text());
  const RowKernel row_kernel(device, x.dim(0));
  const auto entry = kernel(device, "sum", row_kernel.prelude(DType::f32), {"row_reduce", "block_sum"},
                            x.dtype() == DType::f32 ? "sum" : "count");
  recorder.dispatch(entry, {gpu::read(x), gpu::read_write(op.total)}, SumParams{x.dim(0), op.slot, op.accumulate ? 1u : 0u}, {},
                    {.bytes = 4.0 * x.dim(0)});
}

}  // namespace nibble
