#include "nibble/kernels/convert.h"

#include "nibble/base/error.h"
#include "nibble/kernels/flat_kernel.h"

namespace nibble {
namespace {

struct ConvertParams {
  std::uint32_t count;
  float factor;
};

std::uint32_t source_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return 0;
    case DType::f16: return 1;
    case DType::bf16: return 2;
    default: fail("convert", "Weights of type {} cannot be read, only f32, f16 and bf16.", name_of(dtype));
  }
}

}  // namespace

void record(gpu::Recorder& recorder, const Convert& op) {
  auto& device = recorder.device();
  const Tensor x = flat(op.x, "convert"), y = flat(op.y, "convert");
  check(x.dim(0) == y.dim(0), "convert", "{} elements were to be converted to {}.", x.dim(0), y.dim(0));
  check(y.dtype() == DType::f32 || y.dtype() == DType::f16, "convert", "The result is of type {}, not f32 or f16.",
        name_of(y.dtype()));
  gpu::Prelude prelude;
  if (y.dtype() == DType::f16) prelude.enable("f16");
  prelude.alias("Data", name_of(y.dtype())).constant("SOURCE", source_of(x.dtype()));
  const auto entry = flat_kernel(device, "convert", "main", prelude);
  for (const auto slice : gpu::binding_slices(device, x.dim(0), {size_of(x.dtype()), size_of(y.dtype())})) {
    const std::uint32_t count = slice.end - slice.begin;
    recorder.dispatch(entry, {gpu::read(x.rows(slice.begin, slice.end)), gpu::write(y.rows(slice.begin, slice.end))},
                      ConvertParams{count, op.factor}, flat_grid(device, count),
                      {.bytes = double(count) * double(size_of(x.dtype()) + size_of(y.dtype()))});
  }
}

}  // namespace nibble
