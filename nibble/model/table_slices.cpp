#include "nibble/model/table_slices.h"

#include "nibble/base/error.h"
#include "nibble/base/half.h"
#include "nibble/kernels/int8.h"
#include "nibble/kernels/nf4.h"

#include <algorithm>
#include <utility>

namespace nibble {
namespace {

constexpr std::uint32_t row_multiple = 128;   // so that each slice begins where a binding may
constexpr std::uint32_t word_multiple = 64;   // likewise of words
constexpr std::uint32_t up = 1, down = 2;     // routes: a slice's products are those of losses, or of gradients

std::uint64_t words_of(std::uint64_t rows, std::uint32_t columns, TableForm form, DType dtype) {
  return rows * columns * (form == TableForm::dense ? 8 * size_of(dtype) : bits_of(form)) / 32;
}
std::uint64_t scales_of(std::uint64_t rows, std::uint32_t columns, TableForm form) {
  return form == TableForm::dense ? 0 : rows * columns / nf4_block;
}
std::uint64_t slot_words(std::uint64_t rows, std::uint32_t columns, TableForm form, DType dtype) {
  const std::uint64_t codes = words_of(rows, columns, form, dtype);
  return (codes + word_multiple - 1) / word_multiple * word_multiple + scales_of(rows, columns, form);
}

}  // namespace

std::uint32_t TableSlices::rows_of(std::uint32_t table_rows, std::uint32_t columns, const Options& options) {
  constexpr std::uint64_t usual_bytes = std::uint64_t{24} << 20;
  std::uint64_t rows = options.rows;
  if (rows == 0) rows = usual_bytes / (std::uint64_t{columns} * size_of(options.dtype));
  // Whole blocks of the products' tiles, where there are many rows.
  const std::uint64_t multiple = options.rows == 0 && rows >= 1024 ? 1024 : row_multiple;
  rows = std::max<std::uint64_t>(rows / multiple * multiple, row_multiple);
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(rows, table_rows));
}

std::uint64_t TableSlices::bytes(std::uint32_t rows, std::uint32_t columns, TableForm form, bool on_host, const Options& options) {
  const std::uint64_t slice = rows_of(rows, columns, options), slots = !on_host ? 0 : options.carried ? 2 : 1;
  const std::uint64_t decoded = form == TableForm::dense ? 0 : gpu::buffer_bytes(slice * columns * size_of(options.dtype));
  return slots * gpu::buffer_bytes(4 * slot_words(slice, columns, form, options.dtype)) + decoded;
}

TableSlices::TableSlices(gpu::Device& device, const Table& table, const Options& options)
    : table_(table), options_(options), rows_(rows_of(table.rows, table.columns, options)) {
  if (table.on_host) {
    const auto words = static_cast<std::uint32_t>(slot_words(rows_, table.columns, table.form, options.dtype));
    for (std::size_t i = 0; i < (options.carried ? 2u : 1u); ++i) slots_[i].data = device.tensor(DType::u32, {words}, "head slice");
    if (options.carried) cargo_ = gpu::Cargo::make(device);
  }
  if (table.form != TableForm::dense) decoded_ = device.tensor(options.dtype, {rows_, table.columns}, "decoded head slice");
}

gpu::RowRange TableSlices::range(std::uint32_t slice) const {
  check(slice < count(), "head", "Slice {} of {} was asked for.", slice, count());
  return {slice * rows_, std::min(table_.rows, (slice + 1) * rows_)};
}

TableSlices::Values TableSlices::in_table(std::uint32_t slice) const {
  const auto [begin, end] = range(slice);
  const bool dense = table_.form == TableForm::dense;
  const gpu::Tensor& all = dense ? table_.data : table_.codes;
  const auto words = [&](std::uint32_t rows) { return words_of(rows, table_.columns, table_.form, options_.dtype); };
  const auto scales = [&](std::uint32_t rows) { return scales_of(rows, table_.columns, table_.form); };
  Values values{.codes = {all.buffer(), all.offset() + 4 * words(begin), DType::u32, {static_cast<std::uint32_t>(words(end - begin))}}};
  if (!dense) values.scales = table_.block_scales.part(scales(begin), {static_cast<std::uint32_t>(scales(end - begin))});
  return values;
}

TableSlices::Values TableSlices::in_slot(const Slot& slot, std::uint32_t slice) const {
  const Values there = in_table(slice);
  Values values{.codes = slot.data.part(0, {static_cast<std::uint32_t>(there.codes.size())})};
  if (!there.scales) return values;
  const std::uint64_t first = slot.data.size() - scales_of(rows_, table_.columns, table_.form);
  values.scales = {slot.data.buffer(), slot.data.offset() + 4 * first, DType::f32, {static_cast<std::uint32_t>(there.scales.size())}};
  return values;
}

// The codes, or all of a dense table, are cargo where products carry.
void TableSlices::load(gpu::Recorder& recorder, std::uint32_t slice, Slot& slot, std::uint32_t route) {
  const Values from = in_table(slice), to = in_slot(slot, slice);
  if (cargo_) {
    cargo_->load(recorder, from.codes, to.codes, route);
  } else {
    recorder.copy(from.codes, to.codes);
  }
  if (from.scales) recorder.copy(from.scales, to.scales);
  slot.holds = slice;
}

void TableSlices::bring(gpu::Recorder& recorder, std::uint32_t slice, std::uint32_t next) {
  if (!table_.on_host) return;
  if (slots_[0].holds != slice && slots_[1].holds == slice) std::swap(slots_[0], slots_[1]);
  if (slots_[0].holds != slice) load(recorder, slice, slots_[0], 0);
  if (!cargo_) return;
  cargo_->finish(recorder);
  if (next < count() && next != slice && slots_[1].holds != next) load(recorder, next, slots_[1], next < slice ? down : up);
}

Weight TableSlices::decode(gpu::Recorder& recorder, std::uint32_t slice) {
  const auto [begin, end] = range(slice);
  const float scale = options_.dtype == DType::f16 ? 1.0f / top_of_f16(table_.largest) : 1.0f;
  Weight weight{.data = decoded_.rows(0, end - begin), .scale = scale};
  if (std::exchange(decoded_slice_, slice) == slice) return weight;
  const Values values = table_.on_host ? in_slot(slots_[0], slice) : in_table(slice);
  if (table_.form == TableForm::nf4) {
    record(recorder, DequantizeNf4{.w = {values.codes, values.scales}, .out = weight});
  } else {
    record(recorder, DequantizeInt8{.w = {values.codes, values.scales}, .out = weight});
  }
  return weight;
}

Weight TableSlices::slice(gpu::Recorder& recorder, std::uint32_t slice, std::uint32_t next) {
  bring(recorder, slice, next);
  if (table_.form != TableForm::dense) return decode(recorder, slice);
  const auto [begin, end] = range(slice);
  if (!table_.on_host) return {.data = table_.data.rows(begin, end), .scale = table_.scale};
  const gpu::Tensor& data = slots_[0].data;
  return {.data = gpu::Tensor(data.buffer(), data.offset(), options_.dtype, {end - begin, table_.columns}), .scale = table_.scale};
}

}  // namespace nibble
