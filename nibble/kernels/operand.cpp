#include "nibble/kernels/operand.h"

namespace nibble {

Operand make_operand(gpu::Device& device, ProductPath path, std::uint32_t rows, std::uint32_t columns,
                     std::string_view label) {
  Operand operand{.data = device.tensor(operand_dtype(path), {rows, columns}, label)};
  if (path != ProductPath::f32) operand.scale = device.tensor(DType::f32, {rows}, fmt::format("{}.scale", label));
  return operand;
}

std::uint64_t operand_bytes(ProductPath path, std::uint32_t rows, std::uint32_t columns) {
  const std::uint64_t scales = path == ProductPath::f32 ? 0 : gpu::buffer_bytes(DType::f32, {rows});
  return gpu::buffer_bytes(operand_dtype(path), {rows, columns}) + scales;
}

Operand first_rows(const Operand& operand, std::uint32_t rows) {
  return {operand.data.rows(0, rows), operand.scale ? operand.scale.rows(0, rows) : Tensor{}};
}

}  // namespace nibble
