#include "nibble/weights/table.h"

#include "nibble/base/error.h"
#include "nibble/base/half.h"
#include "nibble/gpu/host_memory.h"
#include "nibble/quant/halves.h"
#include "nibble/quant/int8.h"
#include "nibble/quant/nf4.h"
#include "nibble/quant/parallel.h"
#include "nibble/weights/made_up_values.h"

#include <mutex>
#include <optional>

namespace nibble {
namespace {

constexpr std::size_t least_converted_a_thread = std::size_t{1} << 16;
static_assert(nf4_block == int8_block);

std::uint64_t code_bytes(TableForm form, std::uint64_t elements) { return elements * bits_of(form) / 8; }
std::uint64_t scale_bytes(std::uint64_t elements) { return elements / nf4_block * sizeof(float); }
std::uint64_t scales_begin(TableForm form, std::uint64_t elements) {
  return gpu::up_to_binding(code_bytes(form, elements));
}
std::uint64_t host_bytes(const TableOptions& options, std::uint64_t elements) {
  if (options.form == TableForm::dense) return elements * size_of(options.dtype);
  return scales_begin(options.form, elements) + scale_bytes(elements);
}

// A table while it is written.
class TableRoom {
 public:
  TableRoom(gpu::Device& device, std::uint32_t rows, std::uint32_t columns, const TableOptions& options, std::string_view label)
      : device_(device) {
    check_table(device.info(), rows, columns, options, label);
    const std::uint64_t elements = std::uint64_t{rows} * columns;
    table.form = options.form;
    table.on_host = options.on_host;
    table.rows = rows;
    table.columns = columns;
    if (options.on_host) host_.emplace(device, gpu::HostMemory::direct, host_bytes(options, elements), label);
    const auto words = static_cast<std::uint32_t>(code_bytes(options.form, elements) / 4);
    const auto blocks = static_cast<std::uint32_t>(elements / nf4_block);
    if (options.form == TableForm::dense) {
      table.data = place(options.dtype, {rows, columns}, 0, label);
    } else {
      table.codes = place(DType::u32, {words}, 0, label);
      table.block_scales = place(DType::f32, {blocks}, scales_begin(options.form, elements), label);
    }
  }

  void write(const gpu::Tensor& part, std::span<const std::byte> bytes, std::uint64_t first_byte) {
    if (host_) {
      host_->write(bytes, part.offset() + first_byte);
    } else {
      device_.write(part, bytes, first_byte);
    }
  }

  Table finish() {
    if (host_) host_->seal();
    return std::move(table);
  }

  Table table;

 private:
  gpu::Tensor place(DType dtype, std::initializer_list<std::uint32_t> dims, std::uint64_t offset, std::string_view label) {
    return host_ ? gpu::Tensor(host_->tensor().buffer(), offset, dtype, dims) : device_.tensor(dtype, dims, label);
  }

  gpu::Device& device_;
  std::optional<gpu::HostBuffer> host_;
};

// The largest magnitude.
float largest_of(std::span<const float> values) {
  std::mutex mutex;
  std::uint32_t largest = 0;  // magnitudes compare as integers do
  parallel_ranges(values.size(), least_converted_a_thread, 0, [&](std::size_t begin, std::size_t end) {
    std::uint32_t own = 0;
    for (const float value : values.subspan(begin, end - begin)) own = std::max(own, std::bit_cast<std::uint32_t>(value) & 0x7fffffffu);
    const std::lock_guard lock(mutex);
    largest = std::max(largest, own);
  });
  return std::bit_cast<float>(largest);
}

void write_halves(TableRoom& room, const MatrixSource& source, float above) {
  float largest = 0;
  source.read([&](std::span<const float> values, std::uint64_t) { largest = std::max(largest, largest_of(values)); });
  const float factor = top_of_f16(largest) / above;
  room.table.scale = 1.0f / factor;
  std::vector<std::uint16_t> halves;
  source.read([&](std::span<const float> values, std::uint64_t first) {
    halves.resize(values.size());
    parallel_ranges(values.size(), least_converted_a_thread, 0, [&](std::size_t begin, std::size_t end) {
      to_f16(values.subspan(begin, end - begin), factor, std::span(halves).subspan(begin, end - begin));
    });
    room.write(room.table.data, std::as_bytes(std::span(halves)), first * 2);
  });
}

void write_codes(TableRoom& room, const MatrixSource& source, std::string_view label) {
  Table& table = room.table;
  std::vector<std::byte> codes;
  std::vector<float> scales;
  table.largest = 0;
  source.read([&](std::span<const float> values, std::uint64_t first) {
    check(first % nf4_block == 0 && values.size() % nf4_block == 0, label, "A piece of {} values at {} splits a block.", values.size(), first);
    codes.resize(code_bytes(table.form, values.size()));
    scales.resize(values.size() / nf4_block);
    if (table.form == TableForm::nf4) {
      nf4_quantize(DType::f32, std::as_bytes(values), {reinterpret_cast<std::uint8_t*>(codes.data()), codes.size()}, scales,
                   {.name = label, .first_index = first});
      table.largest = std::max(table.largest, largest_of(scales));
    } else {
      int8_quantize(values, {reinterpret_cast<std::int8_t*>(codes.data()), codes.size()}, scales);
      table.largest = std::max(table.largest, 127.0f * largest_of(scales));
    }
    room.write(table.codes, codes, code_bytes(table.form, first));
    room.write(table.block_scales, std::as_bytes(std::span(scales)), scale_bytes(first));
  });
}

// Two f16 or one f32 in +-amplitude.
std::function<std::uint32_t(std::uint32_t)> uniform_words(DType dtype, float amplitude) {
  const auto value = [amplitude](std::uint32_t bits) { return amplitude * (static_cast<float>(bits) * 0x1p-15f - 1.0f); };
  if (dtype == DType::f32) return [value](std::uint32_t word) { return std::bit_cast<std::uint32_t>(value(word >> 16)); };
  return [value](std::uint32_t word) {
    return std::uint32_t{f32_to_f16(value(word >> 16))} << 16 | f32_to_f16(value(word & 0xffffu));
  };
}

}  // namespace

std::uint32_t bits_of(TableForm form) { return form == TableForm::dense ? 16 : form == TableForm::int8 ? 8 : 4; }

TableForm table_form_of(std::uint32_t bits) {
  check<UsageError>(bits == 16 || bits == 8 || bits == 4, "--head-bits", "{} bits were given; there are 16, 8 and 4.", bits);
  return bits == 16 ? TableForm::dense : bits == 8 ? TableForm::int8 : TableForm::nf4;
}

void check_table(const gpu::AdapterInfo& info, std::uint32_t rows, std::uint32_t columns, const TableOptions& options, std::string_view what) {
  check<UsageError>(!options.on_host || gpu::supports(info, gpu::HostMemory::direct), what,
                    "Kernels of {} cannot read host memory; it stays on the device.", info.name);
  if (options.form == TableForm::dense) return;
  const std::uint64_t bytes = code_bytes(options.form, std::uint64_t{rows} * columns);
  check<UsageError>(columns % nf4_block == 0, what, "A hidden size of {} is no multiple of {}; keep embedding and head in 16 bits.", columns, nf4_block);
  check<UsageError>(bytes <= info.limits.max_binding, what,
                    "In {} bits it has {} bytes of codes, and kernels of {} read at most {} at a time; keep it in {}.", bits_of(options.form), bytes,
                    info.name, info.limits.max_binding, options.form == TableForm::int8 ? "4 or 16" : "16");
}

TableBytes table_bytes(const gpu::AdapterInfo& info, std::uint32_t rows, std::uint32_t columns, const TableOptions& options) {
  const std::uint64_t elements = std::uint64_t{rows} * columns;
  if (options.on_host) return {.host = gpu::host_buffer_bytes(info, gpu::HostMemory::direct, host_bytes(options, elements))};
  if (options.form == TableForm::dense) return {.device = gpu::buffer_bytes(elements * size_of(options.dtype))};
  return {.device = gpu::buffer_bytes(code_bytes(options.form, elements)) + gpu::buffer_bytes(scale_bytes(elements))};
}

Table upload_table(gpu::Device& device, const MatrixSource& source, const TableOptions& options, std::string_view label) {
  TableRoom room(device, source.rows, source.columns, options, label);
  if (options.form != TableForm::dense) {
    write_codes(room, source, label);
  } else if (options.dtype == DType::f16) {
    write_halves(room, source, options.room);
  } else {
    source.read([&](std::span<const float> values, std::uint64_t first) { room.write(room.table.data, std::as_bytes(values), first * 4); });
  }
  return room.finish();
}

Table made_up_table(gpu::Device& device, std::uint32_t rows, std::uint32_t columns, const TableOptions& options) {
  constexpr float largest = 0.035f;
  TableRoom room(device, rows, columns, options, "made up");
  const auto write = [&](const gpu::Tensor& part, std::span<const std::byte> bytes, std::uint64_t first) { room.write(part, bytes, first); };
  Table& table = room.table;
  if (options.form == TableForm::dense) {
    fill_random(table.data, uniform_words(options.dtype, largest), write);
  } else {
    fill_random(table.codes, any_word, write);
    fill_random(table.block_scales, scale_words(options.form == TableForm::nf4 ? largest : largest / 127.0f), write);
    table.largest = options.form == TableForm::nf4 ? largest : 128.0f / 127.0f * largest;
  }
  return room.finish();
}

}  // namespace nibble
