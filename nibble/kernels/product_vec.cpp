#include "nibble/kernels/product_vec.h"

#include "nibble/base/error.h"

#include <bit>

namespace nibble {
namespace {

struct ProductVecParams {
  std::uint32_t rows, outputs, inputs, stride, first;
  float scale;
};

// Columns of y that a workgroup computes, and the invocations that share each.
constexpr std::uint32_t rows_n = 4;
std::uint32_t lanes_of(const gpu::Device& device) { return device.info().type == gpu::AdapterType::software ? 8 : 64; }

gpu::Prelude make_prelude(const gpu::Device& device, const Tensor& x, std::uint32_t rows, bool accumulate) {
  gpu::Prelude prelude;
  if (x.dtype() == DType::f16) prelude.enable("f16");
  prelude.alias("ElementX", name_of(x.dtype()));
  prelude.constant("ROWS_M", std::bit_ceil(rows)).constant("ROWS_N", rows_n).constant("LANES", lanes_of(device));
  prelude.constant("ACCUMULATE", accumulate);
  return prelude;
}

void check_shapes(const Tensor& x, const Tensor& y, std::uint32_t inputs) {
  check(x.dim(0) >= 1 && x.dim(0) <= vec_rows && y.dim(0) == x.dim(0) && x.dim(1) == inputs && inputs % 8 == 0 && inputs > 0 &&
            y.dtype() == DType::f32,
        "product_vec", "Shapes do not fit: x {}, y {}, {} inputs; there are 1 to {} rows of a multiple of 8.", x.shape_text(),
        y.shape_text(), inputs, vec_rows);
}

gpu::Grid grid_of(const gpu::Device& device, const ProductVecParams& params) {
  return gpu::linear_grid(device, (params.outputs + rows_n - 1) / rows_n);
}

}  // namespace

void record(gpu::Recorder& recorder, const DenseVec& op) {
  auto& device = recorder.device();
  const Tensor &x = op.x.data, &w = op.w.data;
  const std::uint32_t outputs = w.dim(0), inputs = w.dim(1);
  check_shapes(x, op.y, inputs);
  check(op.w.tile == 0, "product_vec", "The weight {} lies in tiles, which matrix units alone read.", w.shape_text());
  auto prelude = make_prelude(device, x, x.dim(0), op.accumulate);
  prelude.alias("ElementW", name_of(w.dtype())).constant("SCALE_BINDING", 4u);
  const auto kernel = nibble::kernel(device, "product_vec", prelude,
                                     {"grid", "eight_plain", op.x.scale ? "x_scale" : "x_scale_one"});
  for (const auto slice : gpu::binding_slices(device, outputs, {std::uint64_t{inputs} * size_of(w.dtype())})) {
    const ProductVecParams params{.rows = x.dim(0), .outputs = slice.end - slice.begin, .inputs = inputs, .stride = outputs,
                        .first = slice.begin, .scale = op.w.scale};
    const Tensor part = w.rows(slice.begin, slice.end);
    std::vector<gpu::Binding> bindings = {gpu::read(x), gpu::read_write(op.y), gpu::read(part)};
    if (op.x.scale) bindings.push_back(gpu::read(op.x.scale));
    recorder.dispatch_bytes(kernel, bindings, std::as_bytes(std::span<const ProductVecParams, 1>(&params, 1)), grid_of(device, params),
                            {.bytes = static_cast<double>(part.bytes()), .flops = 2.0 * x.dim(0) * static_cast<double>(part.size())});
  }
}

}  // namespace nibble
