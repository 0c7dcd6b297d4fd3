#include "nibble/kernels/grad_norm.h"

#include "nibble/base/error.h"
#include "nibble/kernels/flat_kernel.h"
#include "nibble/kernels/row_kernel.h"

#include <cmath>

namespace nibble {
namespace {

constexpr std::uint32_t partials_of_slice = 1024;

struct GradNormParams {
  std::uint32_t count, first_partial;
  float max_norm;
};

gpu::Kernel norm_kernel(gpu::Device& device, std::string_view entry, bool squares, bool keeps = false) {
  const RowKernel row_kernel(device, 1024);
  gpu::Prelude prelude = row_kernel.prelude(DType::f32);
  prelude.constant("PARTIALS", partials_of_slice).constant("SQUARES", squares).constant("KEEPS", keeps);
  return kernel(device, "grad_norm", prelude, {"row_reduce", "block_sum"}, entry);
}

}  // namespace

std::uint32_t grad_norm_partials(const gpu::Device& device, const std::vector<Tensor>& gradients) {
  std::size_t slices = 0;
  for (const Tensor& tensor : gradients) {
    slices += gpu::binding_slices(device, flat(tensor, "grad_norm").dim(0), {sizeof(float)}).size();
  }
  return static_cast<std::uint32_t>(slices * partials_of_slice);
}

void record(gpu::Recorder& recorder, const GradNorm& op) {
  auto& device = recorder.device();
  const std::uint32_t partials = grad_norm_partials(device, op.gradients);
  check(op.partials.size() >= partials, "grad_norm", "There is room for {} partial sums; {} are needed.", op.partials.size(),
        partials);
  expect_shape(op.norm_and_factor, DType::f32, {2}, "grad_norm", "norm_and_factor");
  const auto squares = norm_kernel(device, "squares", true);
  std::uint32_t first = 0;
  for (const Tensor& tensor : op.gradients) {
    const Tensor x = flat(tensor, "grad_norm");
    expect_shape(x, DType::f32, {x.dim(0)}, "grad_norm", "gradients");
    for (const auto slice : gpu::binding_slices(device, x.dim(0), {sizeof(float)})) {
      const std::uint32_t count = slice.end - slice.begin;
      recorder.dispatch(squares, {gpu::read(x.rows(slice.begin, slice.end)), gpu::write(op.partials)},
                        GradNormParams{count, first, 0.0f}, {.x = partials_of_slice}, {.bytes = 4.0 * count, .flops = 2.0 * count});
      first += partials_of_slice;
    }
  }
  const double max_norm = std::isinf(op.max_norm) ? 0.0 : op.max_norm;
  recorder.dispatch(norm_kernel(device, "finish", false, op.keep_nonfinite),
                    {gpu::read(op.partials), gpu::read_write(op.norm_and_factor)},
                    GradNormParams{partials, 0, static_cast<float>(max_norm)}, {});
}

}  // namespace nibble
