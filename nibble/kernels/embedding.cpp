#include "nibble/kernels/embedding.h"

#include "nibble/base/error.h"
#include "nibble/kernels/nf4.h"
#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

struct EmbeddingParams {
  std::uint32_t rows, columns, first_row, table_rows, vocabulary;
  float scale;
};

struct CodesParams {
  std::uint32_t rows, columns, vocabulary;
};

}  // namespace

void record(gpu::Recorder& recorder, const Embedding& op) {
  auto& device = recorder.device();
  const Tensor& table = op.table.data;
  const std::uint32_t rows = op.tokens.dim(0), vocabulary = table.dim(0), columns = table.dim(1);
  const DType stored = table.dtype() == DType::f16 ? DType::f16 : DType::f32;
  expect_shape(table, stored, {vocabulary, columns}, "embedding", "table");
  expect_shape(op.tokens, DType::u32, {rows}, "embedding", "tokens");
  expect_shape(op.x, DType::f32, {rows, columns}, "embedding", "x");

  const RowKernel row_kernel(device, columns);
  const auto entry = row_kernel.kernel(device, "embedding", "main", row_kernel.prelude(stored));
  const std::uint64_t table_bytes = columns * size_of(stored), x_bytes = columns * sizeof(float);
  for (const auto part : gpu::binding_slices(device, vocabulary, {table_bytes})) {
    for (const auto slice : gpu::binding_slices(device, rows, {sizeof(std::uint32_t), x_bytes})) {
      const std::uint32_t count = slice.end - slice.begin;
      recorder.dispatch(entry,
                        {gpu::read(op.tokens.rows(slice.begin, slice.end)), gpu::read(table.rows(part.begin, part.end)),
                         gpu::read_write(op.x.rows(slice.begin, slice.end))},
                        EmbeddingParams{count, columns, part.begin, part.end - part.begin, vocabulary, op.table.scale},
                        gpu::linear_grid(device, count), {.bytes = double(count) * double(table_bytes + x_bytes)});
    }
  }
}

void record(gpu::Recorder& recorder, const EmbeddingCodes& op) {
  auto& device = recorder.device();
  const std::uint32_t rows = op.tokens.dim(0), columns = op.x.dim(1);
  const std::uint64_t elements = std::uint64_t{op.vocabulary} * columns;
  const bool four_bits = op.codes.size() * 8 == elements;
  expect_shape(op.tokens, DType::u32, {rows}, "embedding", "tokens");
  expect_shape(op.x, DType::f32, {rows, columns}, "embedding", "x");
  check((four_bits || op.codes.size() * 4 == elements) && op.scales.size() * 64 == elements && columns % 64 == 0, "embedding",
        "{} words of codes and {} scales do not make a table ({}, {}).", op.codes.size(), op.scales.size(), op.vocabulary, columns);
  const RowKernel row_kernel(device, columns);
  gpu::Prelude prelude = row_kernel.prelude(DType::f32);
  prelude.constant("BITS", four_bits ? 4u : 8u).text(nf4_codes_text(CodeBook::nf4));
  const auto entry = kernel(device, "embedding_codes", prelude, {"grid", "row_scale", four_bits ? "nf4" : "int8"});
  for (const auto slice : gpu::binding_slices(device, rows, {columns * sizeof(float)})) {
    const std::uint32_t count = slice.end - slice.begin;
    recorder.dispatch(entry,
                      {gpu::read(op.tokens.rows(slice.begin, slice.end)), gpu::read(op.codes), gpu::read(op.scales),
                       gpu::write(op.x.rows(slice.begin, slice.end))},
                      CodesParams{count, columns, op.vocabulary}, gpu::linear_grid(device, count),
                      {.bytes = count * columns * (four_bits ? 4.5 : 5.0)});
  }
}

}  // namespace nibble
