#include "nibble/quant/nf4.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "nibble/base/error.h"
#include "nibble/quant/nf4_kernels.h"
#include "nibble/quant/nf4_table.h"
#include "nibble/quant/parallel.h"

namespace nibble {
namespace {

constexpr std::size_t least_values_a_thread = std::size_t{1} << 16;

void check_options(const Nf4Options& options) {
  check(options.block_size > 0 && options.block_size % nf4_block == 0, options.name,
        "The block size is {}; it must be a multiple of 64.", options.block_size);
  check(options.simd <= best_simd(), options.name, "This processor lacks the instructions that were asked for.");
}

std::size_t least_blocks_a_thread(const Nf4Options& options) {
  return std::max<std::size_t>(1, least_values_a_thread / options.block_size);
}

[[noreturn]] void fail_not_finite(DType dtype, const std::byte* source, std::size_t begin, std::size_t end,
                                  const Nf4Options& options) {
  std::size_t i = begin;
  while (i + 1 < end && std::isfinite(nf4_load(dtype, source, i))) ++i;
  fail<DataError>(options.name, "The value at index {} is {}; weights must be finite numbers.", options.first_index + i,
                  nf4_load(dtype, source, i));
}

}  // namespace

void nf4_quantize(DType dtype, std::span<const std::byte> bytes, std::span<std::uint8_t> packed,
                  std::span<float> absmax, const Nf4Options& options) {
  check_options(options);
  check(dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16, options.name,
        "The type is {}; f32, f16 and bf16 can be quantised.", name_of(dtype));
  const std::size_t count = bytes.size() / size_of(dtype);
  const std::size_t block_size = options.block_size;
  check(bytes.size() % size_of(dtype) == 0 && packed.size() == nf4_packed_bytes(count) &&
            absmax.size() == nf4_blocks(count, block_size),
        options.name, "{} bytes of {} need {} packed bytes and {} scales; there is room for {} and {}.", bytes.size(),
        name_of(dtype), nf4_packed_bytes(count), nf4_blocks(count, block_size), packed.size(), absmax.size());

  const std::byte* source = bytes.data();
  const std::size_t whole_blocks = count / block_size;
  parallel_ranges(whole_blocks, least_blocks_a_thread(options), options.threads,
                  [&](std::size_t begin, std::size_t end) {
                    const Nf4Blocks task{.source = source + begin * block_size * size_of(dtype),
                                         .blocks = end - begin,
                                         .block_size = block_size,
                                         .packed = packed.data() + begin * block_size / 2,
                                         .absmax = absmax.data() + begin,
                                         .order = options.order};
                    if (!nf4_encode(dtype, task, options.simd)) {
                      fail_not_finite(dtype, source, begin * block_size, end * block_size, options);
                    }
                  });
  const std::size_t done = whole_blocks * block_size;
  if (done == count) return;
  if (!nf4_encode_short_block(dtype, source + done * size_of(dtype), count - done, packed.data() + done / 2,
                              absmax.data() + whole_blocks, options.order)) {
    fail_not_finite(dtype, source, done, count, options);
  }
}

void nf4_dequantize(std::span<const std::uint8_t> packed, std::span<const float> absmax, std::span<float> out,
                    const Nf4Options& options) {
  check_options(options);
  const std::size_t count = out.size();
  const std::size_t block_size = options.block_size;
  check(packed.size() == nf4_packed_bytes(count) && absmax.size() == nf4_blocks(count, block_size), options.name,
        "{} values need {} packed bytes and {} scales; {} and {} were given.", count, nf4_packed_bytes(count),
        nf4_blocks(count, block_size), packed.size(), absmax.size());
  const int first_shift = options.order == NibbleOrder::high_first ? 4 : 0;
  const std::array<float, 16>& codes = codes_of(options.codes);
  parallel_ranges(absmax.size(), least_blocks_a_thread(options), options.threads,
                  [&](std::size_t begin, std::size_t end) {
                    for (std::size_t block = begin; block < end; ++block) {
                      // The sixteen products first: a block has at least as many values, and each is the same product.
                      std::array<float, 16> scaled;
                      for (std::size_t code = 0; code < 16; ++code) scaled[code] = codes[code] * absmax[block];
                      const std::size_t last = std::min(count, (block + 1) * block_size);
                      for (std::size_t i = block * block_size; i < last; ++i) {
                        const int shift = i % 2 == 0 ? first_shift : 4 - first_shift;
                        out[i] = scaled[(packed[i / 2] >> shift) & 15];
                      }
                    }
                  });
}

float nf4_error_bound(float absmax) {
  // The widest gap is the lowest one. Three roundings of at most half a unit of a value in [-1, 1] come on top: of the
  // reciprocal, of the scaling and of the product.
  constexpr float half_gap = (nf4_codes[1] - nf4_codes[0]) / 2;
  constexpr float rounding = 3 * 0x1p-24f;
  if (absmax < std::numeric_limits<float>::min()) return absmax;
  return absmax * (half_gap + rounding) * (1 + 0x1p-22f) + std::numeric_limits<float>::denorm_min();
}

}  // namespace nibble
