#include "nibble/kernels/nf4.h"

#include "nibble/base/error.h"
#include "nibble/base/nf4_table.h"
#include "nibble/kernels/carry.h"

#include <cmath>

namespace nibble {
namespace {

struct Nf4Params {
  detail::LoraRowsSumParams rows{};
  std::uint32_t count;
  float factor;
  std::uint32_t carriers = 0, cargo_first = 0, cargo_rounds = 0;
  std::uint32_t workgroups = 0;  // that decode
};

struct TileParams {
  detail::LoraRowsSumParams rows{};
  std::uint32_t row_words, row_groups;
  float factor;
  std::uint32_t carriers = 0, cargo_first = 0, cargo_rounds = 0;
  std::uint32_t workgroups = 0;  // that decode
};

constexpr std::uint32_t decoders = 256;  // invocations of a workgroup of kernels for GPUs

constexpr std::uint32_t words_at_once = 64;  // of a workgroup of the kernel for processors, each by an invocation

constexpr std::uint32_t table_words = 8;  // that an invocation of nf4_dequantize_table.wgsl decodes

gpu::Work work_of(const Nf4& w, const Tensor& out, const LoraRowsSum* rows_sum) {
  return {.bytes = static_cast<double>(out.bytes() + w.packed.bytes() + w.absmax.bytes()) + (rows_sum ? detail::rows_sum_bytes(*rows_sum) : 0)};
}

// What a kernel with workgroups of so many invocations adds up beside; returns the snippet that does.
std::string_view add_beside(const LoraRowsSum* rows_sum, std::uint32_t invocations, std::vector<gpu::Binding>& bindings, gpu::Prelude& prelude,
                            detail::LoraRowsSumParams& params) {
  if (!rows_sum) return "lora_rows_sum_none";
  // Few: their registers are those of the decoding invocations too.
  params = detail::add_rows_sum(*rows_sum, invocations, bindings, prelude.constant("PARTS_AT_ONCE", 2u));
  return "lora_rows_sum";
}

// Records a kernel for GPUs on `workgroups` of them, with a share of the cargo: decoding waits for memory, and has the time.
template <typename P>
void record_carrying(gpu::Recorder& recorder, std::string_view file, gpu::Prelude prelude, std::string_view entry, const Nf4& w, const Tensor& out,
                     const LoraRowsSum* rows_sum, P params, std::uint64_t workgroups) {
  auto& device = recorder.device();
  const gpu::Work work = work_of(w, out, rows_sum);
  std::vector<gpu::Binding> bindings{gpu::read(w.packed), gpu::read(w.absmax), gpu::write(out)};
  const Carry carry = take_cargo(device, flops_as_long_as_a_byte * work.bytes, bindings.size(), decoders);
  if (carry) {
    bindings.push_back(gpu::read(carry.from));
    bindings.push_back(gpu::write(carry.to));
  }
  params.carriers = carry.carriers, params.cargo_first = carry.first_vector, params.cargo_rounds = carry.rounds;
  params.workgroups = static_cast<std::uint32_t>(workgroups);
  prelude.constant("WORKGROUP", decoders).constant("CARRIED_VECTORS", carried_vectors);
  const std::string_view rows = add_beside(rows_sum, decoders, bindings, prelude, params.rows);
  const auto kernel =
      nibble::kernel(device, file, prelude, {"grid", "nf4_codes", carry ? "carry" : "carry_none", "lora_rows_sum_params", rows, "decodes"}, entry);
  recorder.dispatch_bytes(kernel, bindings, std::as_bytes(std::span(&params, 1)),
                          gpu::linear_grid(device, workgroups + carry.carriers + params.rows.groups), work);
}

// The kernel for processors.
void record_plain(gpu::Recorder& recorder, gpu::Prelude prelude, const Nf4& w, const Tensor& out, const LoraRowsSum* rows_sum, Nf4Params params,
                  std::uint32_t workgroups) {
  auto& device = recorder.device();
  std::vector<gpu::Binding> bindings{gpu::read(w.packed), gpu::read(w.absmax), gpu::write(out)};
  const std::string_view rows = add_beside(rows_sum, words_at_once, bindings, prelude, params.rows);
  recorder.dispatch_bytes(nibble::kernel(device, "nf4_dequantize", prelude, {"grid", "nf4", "lora_rows_sum_params", rows}), bindings,
                          std::as_bytes(std::span(&params, 1)), gpu::linear_grid(device, workgroups + params.rows.groups),
                          work_of(w, out, rows_sum));
}

void record_tiles(gpu::Recorder& recorder, const DequantizeNf4& op) {
  const Tensor& out = op.out.data;
  const std::uint32_t rows = out.dim(0), columns = out.dim(1), tile = op.out.tile;
  const std::uint32_t wide = op.out.turned ? tiled_columns : tile;
  check(out.dtype() == DType::f16 && tile % 8 == 0 && rows % tile == 0 && columns % tile == 0 && columns % wide == 0, "nf4",
        "A weight {} of {} has no tiles of {}.", out.shape_text(), name_of(out.dtype()), tile);
  gpu::Prelude prelude;
  prelude.enable("f16").enable("subgroups").constant("TILE", tile).text(nf4_codes_text(op.w.codes));
  const TileParams params{.row_words = columns / 8, .row_groups = rows / 8, .factor = 1.0f / op.out.scale};
  // Straight, a group of a tile's vectors takes eight words.
  const std::uint64_t invocations = op.out.turned ? std::uint64_t{params.row_words} * params.row_groups
                                                  : std::uint64_t{rows} * (tile / 8) * ((params.row_words + 7) / 8);
  const Tensor packed(op.w.packed.buffer(), op.w.packed.offset(), DType::u32, {rows, columns / 8});
  record_carrying(recorder, "nf4_dequantize_tiles", prelude, op.out.turned ? "turned" : "straight", {.packed = packed, .absmax = op.w.absmax}, out,
                  op.rows_sum, params, (invocations + decoders - 1) / decoders);
}

}  // namespace

Tensor words_of(const Nf4& w) {
  return Tensor(w.packed.buffer(), w.packed.offset(), DType::u32, {static_cast<std::uint32_t>(w.packed.bytes() / 4)});
}

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
  const std::uint32_t group_words = by_table ? decoders * table_words : words_at_once;
  gpu::Prelude prelude;
  if (out.dtype() == DType::f16 || op.rows_sum) prelude.enable("f16");
  prelude.alias("Element", name_of(out.dtype())).constant("WORDS", table_words).text(nf4_codes_text(op.w.codes));

  // Blocks are the rows that slices are made of.
  const auto blocks = static_cast<std::uint32_t>(elements / nf4_block);
  constexpr std::uint32_t words = nf4_block / 8;
  const Tensor packed(op.w.packed.buffer(), op.w.packed.offset(), DType::u32, {blocks, words});
  const Tensor values = out.view({blocks, nf4_block});
  for (const auto range : gpu::binding_slices(device, blocks, {4 * words, 4, nf4_block * size_of(out.dtype())})) {
    const LoraRowsSum* rows_sum = range.begin == 0 ? op.rows_sum : nullptr;
    Nf4Params params{.count = (range.end - range.begin) * words, .factor = 1.0f / op.out.scale};
    const Tensor slice = values.rows(range.begin, range.end);
    const Nf4 w{.packed = packed.rows(range.begin, range.end), .absmax = op.w.absmax.rows(range.begin, range.end)};
    const std::uint32_t workgroups = (params.count + group_words - 1) / group_words;
    if (by_table) {
      record_carrying(recorder, "nf4_dequantize_table", prelude, "main", w, slice, rows_sum, params, workgroups);
      continue;
    }
    record_plain(recorder, prelude, w, slice, rows_sum, params, workgroups);
  }
}

}  // namespace nibble
