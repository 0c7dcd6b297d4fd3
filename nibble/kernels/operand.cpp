#include "nibble/kernels/operand.h"

namespace nibble {

bool supports(const gpu::AdapterInfo& info, ProductPath path) {
  switch (path) {
    case ProductPath::matrix: return info.f16 && info.subgroups && !info.matrix_configs.empty();
    case ProductPath::f16: return info.f16;
    case ProductPath::f32: return true;
  }
  return false;
}

ProductPath best_path(const gpu::AdapterInfo& info) {
  if (info.type == gpu::AdapterType::software) return ProductPath::f32;
  for (const ProductPath path : {ProductPath::matrix, ProductPath::f16}) {
    if (supports(info, path)) return path;
  }
  return ProductPath::f32;
}

Operand make_operand(gpu::Device& device, ProductPath path, std::uint32_t rows, std::uint32_t columns,
                     std::string_view label) {
  Operand operand{.data = device.tensor(operand_dtype(path), {rows, columns}, label)};
  if (path != ProductPath::f32) operand.scale = device.tensor(DType::f32, {rows}, fmt::format("{}.scale", label));
  return operand;
}

Operand first_rows(const Operand& operand, std::uint32_t rows) {
  return {operand.data.rows(0, rows), operand.scale ? operand.scale.rows(0, rows) : Tensor{}};
}

}  // namespace nibble
