#include "nibble/kernels/token_rows.h"

#include "nibble/base/error.h"
#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

struct TokenWriteParams {
  std::uint32_t rows, columns, first_row, table_rows;
  float factor;
};

struct TokenEmbeddingParams {
  std::uint32_t rows, columns, tokens, pieces;
};

struct TokenHeadParams {
  std::uint32_t rows, columns, labels, vocabulary, pieces;
};

// Workgroups that share a row, a vector a lane.
std::uint32_t pieces_of(const RowKernel& kernel, std::uint32_t columns) {
  return (columns / kernel.width + kernel.workgroup - 1) / kernel.workgroup;
}

gpu::Grid grid_of(const gpu::Device& device, std::uint32_t rows, std::uint32_t pieces) {
  return gpu::linear_grid(device, std::uint64_t{rows} * pieces);
}

}  // namespace

void record(gpu::Recorder& recorder, const WriteTokenRows& op) {
  auto& device = recorder.device();
  const Tensor& table = op.table.data;
  const std::uint32_t rows = op.rows.dim(0), vocabulary = table.dim(0), columns = table.dim(1);
  const DType stored = table.dtype() == DType::f16 ? DType::f16 : DType::f32;
  expect_shape(table, stored, {vocabulary, columns}, "token rows", "table");
  expect_shape(op.rows, DType::f32, {rows, columns}, "token rows", "rows");
  expect_shape(op.ids, DType::u32, {rows}, "token rows", "ids");
  const RowKernel row_kernel(device, columns);
  const auto entry = row_kernel.kernel(device, "token_rows_write", "main", row_kernel.prelude(stored));
  const std::uint64_t table_bytes = columns * size_of(stored), row_bytes = columns * sizeof(float);
  for (const auto part : gpu::binding_slices(device, vocabulary, {table_bytes})) {
    for (const auto slice : gpu::binding_slices(device, rows, {sizeof(std::uint32_t), row_bytes})) {
      const std::uint32_t count = slice.end - slice.begin;
      recorder.dispatch(entry,
                        {gpu::read(op.rows.rows(slice.begin, slice.end)), gpu::read(op.ids.rows(slice.begin, slice.end)),
                         gpu::read_write(table.rows(part.begin, part.end))},
                        TokenWriteParams{count, columns, part.begin, part.end - part.begin, 1.0f / op.table.scale},
                        gpu::linear_grid(device, count), {.bytes = double(count) * double(table_bytes + row_bytes)});
    }
  }
}

void record(gpu::Recorder& recorder, const EmbeddingBackward& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.ids.dim(0), tokens = op.tokens.dim(0), columns = op.d_rows.dim(1);
  expect_shape(op.tokens, DType::u32, {tokens}, "embedding backward", "tokens");
  expect_shape(op.dx, DType::f32, {tokens, columns}, "embedding backward", "dx");
  expect_shape(op.ids, DType::u32, {rows}, "embedding backward", "ids");
  expect_shape(op.d_rows, DType::f32, {rows, columns}, "embedding backward", "d_rows");
  const RowKernel row_kernel(device, columns);
  const auto entry = row_kernel.kernel(device, "embedding_backward", "main", row_kernel.prelude(DType::f32));
  const std::uint32_t pieces = pieces_of(row_kernel, columns);
  const std::uint64_t row_bytes = columns * sizeof(float);
  for (const auto own : gpu::binding_slices(device, rows, {sizeof(std::uint32_t), row_bytes})) {
    for (const auto slice : gpu::binding_slices(device, tokens, {sizeof(std::uint32_t), row_bytes})) {
      const std::uint32_t count = own.end - own.begin, length = slice.end - slice.begin;
      recorder.dispatch(entry,
                        {gpu::read(op.tokens.rows(slice.begin, slice.end)), gpu::read(op.dx.rows(slice.begin, slice.end)),
                         gpu::read(op.ids.rows(own.begin, own.end)), gpu::read_write(op.d_rows.rows(own.begin, own.end))},
                        TokenEmbeddingParams{count, columns, length, pieces}, grid_of(device, count, pieces),
                        {.bytes = 2.0 * double(count) * double(row_bytes) + 4.0 * length});
    }
  }
}

void record(gpu::Recorder& recorder, const HeadRowsBackward& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.ids.dim(0), labels = op.normed.data.dim(0), columns = op.d_rows.dim(1);
  const std::uint32_t vocabulary = op.d_logits.data.dim(1);
  const bool scaled = is_scaled(op.normed);
  check(is_scaled(op.d_logits) == scaled, "head rows backward", "The operands d_logits and normed must both be in f16 or both in f32.");
  expect_shape(op.d_logits, labels, vocabulary, "head rows backward", "d_logits");
  expect_shape(op.normed, labels, columns, "head rows backward", "normed");
  expect_shape(op.ids, DType::u32, {rows}, "head rows backward", "ids");
  expect_shape(op.d_rows, DType::f32, {rows, columns}, "head rows backward", "d_rows");
  const DType stored = scaled ? DType::f16 : DType::f32;
  const RowKernel row_kernel(device, columns);
  const auto prelude = row_kernel.prelude(stored).alias("Element", name_of(stored)).constant("SCALED", scaled);
  const auto entry = row_kernel.kernel(device, "head_rows_backward", "main", prelude);
  const std::uint32_t pieces = pieces_of(row_kernel, columns);
  const std::uint64_t row_bytes = columns * sizeof(float);
  for (const auto own : gpu::binding_slices(device, rows, {sizeof(std::uint32_t), row_bytes})) {
    for (const auto slice : gpu::binding_slices(device, labels, {data_row_bytes(op.d_logits), data_row_bytes(op.normed), sizeof(float)})) {
      const std::uint32_t count = own.end - own.begin, length = slice.end - slice.begin;
      const Operand d_logits = operand_rows(op.d_logits, slice), normed = operand_rows(op.normed, slice);
      const Tensor ids = op.ids.rows(own.begin, own.end);
      recorder.dispatch(entry,
                        {gpu::read(d_logits.data), gpu::read(normed.data), gpu::read(ids),
                         gpu::read_write(op.d_rows.rows(own.begin, own.end)), gpu::read(scaled ? d_logits.scale : d_logits.data),
                         gpu::read(scaled ? normed.scale : normed.data)},
                        TokenHeadParams{count, columns, length, vocabulary, pieces}, grid_of(device, count, pieces),
                        {.bytes = double(length) * double(data_row_bytes(op.normed)) + 2.0 * double(count) * double(row_bytes),
                         .flops = 2.0 * double(count) * length * columns});
    }
  }
}

}  // namespace nibble
