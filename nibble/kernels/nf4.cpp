#include "nibble/kernels/nf4.h"

#include "nibble/base/error.h"
#include "nibble/base/nf4_table.h"

#include <cmath>

namespace nibble {
namespace {

struct Nf4Params {
  std::uint32_t count;
  float factor;
};

struct TileParams {
  std::uint32_t row_words, row_groups;
  float factor;
};

constexpr std::uint32_t table_words = 8;  // that an invocation of nf4_dequantize_table.wgsl decodes

void record_tiles(gpu::Recorder& recorder, const DequantizeNf4& op) {
  auto& device = recorder.device();
  const Tensor& out = op.out.data;
  const std::uint32_t rows = out.dim(0), columns = out.dim(1), tile = op.out.tile;
  const std::uint32_t wide = op.out.turned ? tiled_columns : tile;
  check(out.dtype() == DType::f16 && tile % 8 == 0 && rows % tile == 0 && columns % tile == 0 && columns % wide == 0, "nf4",
        "A weight {} of {} has no tiles of {}.", out.shape_text(), name_of(out.dtype()), tile);
  gpu::Prelude prelude;
  prelude.enable("f16").enable("subgroups").constant("TILE", tile).text(nf4_codes_text(op.w.codes));
  const auto entry = kernel(device, "nf4_dequantize_tiles", prelude, {"grid", "nf4_codes"}, op.out.turned ? "turned" : "straight");
  const TileParams params{.row_words = columns / 8, .row_groups = rows / 8, .factor = 1.0f / op.out.scale};
  // Straight, a group of a tile's vectors takes eight words.
  const std::uint64_t invocations = op.out.turned ? std::uint64_t{params.row_words} * params.row_groups
                                                  : std::uint64_t{rows} * (tile / 8) * ((params.row_words + 7) / 8);
  const Tensor packed(op.w.packed.buffer(), op.w.packed.offset(), DType::u32, {rows, columns / 8});
  recorder.dispatch(entry, {gpu::read(packed), gpu::read(op.w.absmax), gpu::write(out)}, params,
                    gpu::linear_grid(device, (invocations + 255) / 256),
                    {.bytes = static_cast<double>(out.bytes() + packed.bytes() + op.w.absmax.bytes())});
}

}  // namespace

const std::string& nf4_codes_text(CodeBook book) {
  const auto text = [](CodeBook of) {
    std::string values;
    for (const float code : codes_of(of)) values += fmt::format("{:.9g}, ", code);
    return fmt::format("const NF4_CODES = array<f32, {}>({});\n", codes_of(of).size(), values);
  };
  static const std::string nf4 = text(CodeBook::nf4), fp4 = text(CodeBook::fp4);
  return book == CodeBook::fp4 ? fp4 : nf4;
}

void record(gpu::Recorder& recorder, const DequantizeNf4& op) {
  auto& device = recorder.device();
  const Tensor& out = op.out.data;
  const std::uint64_t elements = out.size();
  check(elements % nf4_block == 0, "nf4", "The weight {} has {} elements, which are no multiple of {}.",
        out.shape_text(), elements, nf4_block);
  check(op.w.packed.bytes() * 2 == elements && op.w.absmax.size() * nf4_block == elements, "nf4",
        "{} packed bytes and {} block maxima do not make a weight {}.", op.w.packed.bytes(), op.w.absmax.size(),
        out.shape_text());
  if (op.out.tile > 0) return record_tiles(recorder, op);
  const auto type = op.tiles_for.value_or(device.info().type);
  const bool by_table = out.dtype() == DType::f16 && type != gpu::AdapterType::software;
  const std::uint32_t group_words = by_table ? 256 * table_words : 64;
  gpu::Prelude prelude;
  if (out.dtype() == DType::f16) prelude.enable("f16");
  prelude.alias("Element", name_of(out.dtype())).constant("WORDS", table_words).text(nf4_codes_text(op.w.codes));
  const char* const file = by_table ? "nf4_dequantize_table" : "nf4_dequantize";
  const auto kernel = nibble::kernel(device, file, prelude, {"grid", by_table ? "nf4_codes" : "nf4"});

  // Blocks are the rows that slices are made of.
  const auto blocks = static_cast<std::uint32_t>(elements / nf4_block);
  constexpr std::uint32_t words = nf4_block / 8;
  const Tensor packed(op.w.packed.buffer(), op.w.packed.offset(), DType::u32, {blocks, words});
  const Tensor values = out.view({blocks, nf4_block});
  for (const auto range : gpu::binding_slices(device, blocks, {4 * words, 4, nf4_block * size_of(out.dtype())})) {
    const Nf4Params params{.count = (range.end - range.begin) * words, .factor = 1.0f / op.out.scale};
    const Tensor slice = values.rows(range.begin, range.end);
    recorder.dispatch(kernel,
                      {gpu::read(packed.rows(range.begin, range.end)), gpu::read(op.w.absmax.rows(range.begin, range.end)),
                       gpu::write(slice)},
                      params, gpu::linear_grid(device, (params.count + group_words - 1) / group_words),
                      {.bytes = static_cast<double>(slice.bytes()) + (range.end - range.begin) * 36.0});
  }
}

}  // namespace nibble
