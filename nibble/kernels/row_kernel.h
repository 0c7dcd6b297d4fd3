#pragma once

#include "nibble/kernels/operand.h"

namespace nibble {

// What kernels share that give each row of a matrix one workgroup: lib/wide4.wgsl or lib/wide1.wgsl by the row's length, and
// the size of the workgroup by the adapter and the row.
struct RowKernel {
  std::uint32_t width;      // columns that a lane takes at once: 4 or 1
  std::uint32_t workgroup;  // lanes

  RowKernel(const gpu::Device& device, std::uint32_t columns);

  // Of so many wides of a row, how many a lane takes, where it can keep them in registers between two passes; 0: too many.
  std::uint32_t kept(std::uint32_t wides, std::uint32_t most) const;

  // Constants and, as the alias `Data`, the element type of what is stored.
  gpu::Prelude prelude(DType data) const;
  // The entry point of FILE.wgsl with the snippets that row kernels use, and one of its own.
  gpu::Kernel kernel(gpu::Device& device, std::string_view file, std::string_view entry,
                     const gpu::Prelude& prelude, std::string_view own = {}) const;
};

// Throws unless `tensor` has the dimensions and the type. `where` is the operation, `name` the tensor's name in it.
void expect_shape(const Tensor& tensor, DType dtype, std::initializer_list<std::uint32_t> dims, std::string_view where,
                  std::string_view name);
// The same for an operand: f16 with scale or f32 without.
void expect_shape(const Operand& operand, std::uint32_t rows, std::uint32_t columns, std::string_view where,
                  std::string_view name);

inline bool is_scaled(const Operand& operand) { return static_cast<bool>(operand.scale); }

// Bytes of an operand's row in its data and in its scale (0 where it has none), for gpu::binding_slices.
inline std::uint64_t data_row_bytes(const Operand& operand) {
  return std::uint64_t{operand.data.dim(1)} * size_of(operand.data.dtype());
}
inline std::uint64_t scale_row_bytes(const Operand& operand) { return is_scaled(operand) ? sizeof(float) : 0; }

// Rows [begin, end) of an operand.
inline Operand operand_rows(const Operand& operand, gpu::RowRange rows) {
  return {operand.data.rows(rows.begin, rows.end),
          is_scaled(operand) ? operand.scale.rows(rows.begin, rows.end) : Tensor{}};
}

}  // namespace nibble
