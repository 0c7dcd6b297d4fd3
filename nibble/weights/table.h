#pragma once

#include "nibble/gpu/device.h"
#include "nibble/weights/matrix_source.h"

#include <cstdint>
#include <string_view>

// What has a row for each entry of the vocabulary: the embedding and the head.
namespace nibble {

// In which form such a table is kept.
enum class TableForm : std::uint8_t {
  dense,  // as products read it: f16, or f32 where products are
  int8,   // nibble/quant/int8.h
  nf4,    // nibble/quant/nf4.h
};
std::uint32_t bits_of(TableForm form);  // 16, 8 or 4, as --head-bits has them
TableForm table_form_of(std::uint32_t bits);

// value = data * scale; scale is 1 for f32 and a power of two for f16.
struct DenseMatrix {
  gpu::Tensor data;  // (rows, columns)
  float scale = 1.0f;
};

// In codes `data` is empty: value = code * scale of its block of 64 along the flattened matrix.
struct Table : DenseMatrix {
  TableForm form = TableForm::dense;
  bool on_host = false;       // in memory of the process, which kernels read
  std::uint32_t rows = 0, columns = 0;
  gpu::Tensor codes;          // u32, flat
  gpu::Tensor block_scales;   // f32, flat: of NF4 the blocks' largest magnitudes
  float largest = 1.0f;       // magnitude, at most

  // Where its values lie, for what asks whether two are one.
  const gpu::Buffer& buffer() const { return form == TableForm::dense ? data.buffer() : codes.buffer(); }
  explicit operator bool() const { return buffer() != nullptr; }
};

struct TableOptions {
  DType dtype = DType::f32;  // of a dense one: f32 or f16
  TableForm form = TableForm::dense;
  bool on_host = false;
  float room = 1.0f;  // in f16: how many times the largest magnitude rows may reach that are written later
};

// Room where rows change. It costs precision in values below 2^-19 of the largest, where f16's subnormals then begin, in place of 2^-27.
inline constexpr float token_rows_room = 256.0f;

// UsageError where a table of so many columns cannot be had in this form, or the adapter's kernels cannot read host memory.
void check_table(const gpu::AdapterInfo& info, std::uint32_t rows, std::uint32_t columns, const TableOptions& options, std::string_view what);

struct TableBytes {
  std::uint64_t device = 0, host = 0;
};
TableBytes table_bytes(const gpu::AdapterInfo& info, std::uint32_t rows, std::uint32_t columns, const TableOptions& options);

// Read in pieces, converted or quantised, and uploaded.
Table upload_table(gpu::Device& device, const MatrixSource& source, const TableOptions& options, std::string_view label);

// Random values, for measuring without files.
Table made_up_table(gpu::Device& device, std::uint32_t rows, std::uint32_t columns, const TableOptions& options);

}  // namespace nibble
