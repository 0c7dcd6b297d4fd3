#include "nibble/kernels/row_kernel.h"

#include "nibble/base/error.h"

#include <algorithm>
#include <bit>

namespace nibble {

RowKernel::RowKernel(const gpu::Device& device, std::uint32_t columns) : width(columns % 4 == 0 ? 4 : 1), workgroup(8) {
  // The software adapter runs a workgroup on one core, eight lanes at once, and pays for each further eight at a barrier.
  if (device.info().type == gpu::AdapterType::software) return;
  workgroup = std::clamp(std::bit_ceil(std::max(columns / width, 1u)), 32u, 256u);
}

std::uint32_t RowKernel::kept(std::uint32_t wides, std::uint32_t most) const {
  const std::uint32_t share = (wides + workgroup - 1) / workgroup;
  return share <= most ? share : 0;
}

gpu::Prelude RowKernel::prelude(DType data) const {
  gpu::Prelude prelude;
  if (data == DType::f16) prelude.enable("f16");
  const auto type = width == 4 ? fmt::format("vec4<{}>", name_of(data)) : std::string(name_of(data));
  return prelude.constant("WORKGROUP", workgroup).alias("Data", type);
}

gpu::Kernel RowKernel::kernel(gpu::Device& device, std::string_view file, std::string_view entry,
                              const gpu::Prelude& prelude, std::string_view own) const {
  const std::string_view wide = width == 4 ? "wide4" : "wide1";
  if (own.empty()) return nibble::kernel(device, file, prelude, {"grid", "row_reduce", "row_scale", wide, "sigmoid"}, entry);
  return nibble::kernel(device, file, prelude, {"grid", "row_reduce", "row_scale", wide, "sigmoid", own}, entry);
}

void expect_shape(const Tensor& tensor, DType dtype, std::initializer_list<std::uint32_t> dims, std::string_view where,
                  std::string_view name) {
  check(static_cast<bool>(tensor), where, "The tensor {} is missing.", name);
  check(tensor.dtype() == dtype, where, "The tensor {} is of type {} instead of {}.", name, name_of(tensor.dtype()),
        name_of(dtype));
  const Tensor wanted(nullptr, 0, dtype, dims);
  check(tensor.shape_text() == wanted.shape_text(), where, "The tensor {} has shape {} instead of {}.", name,
        tensor.shape_text(), wanted.shape_text());
}

void expect_shape(const Operand& operand, std::uint32_t rows, std::uint32_t columns, std::string_view where,
                  std::string_view name) {
  expect_shape(operand.data, is_scaled(operand) ? DType::f16 : DType::f32, {rows, columns}, where, name);
  if (is_scaled(operand)) expect_shape(operand.scale, DType::f32, {rows}, where, name);
}

}  // namespace nibble
