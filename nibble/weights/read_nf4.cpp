#include "nibble/weights/read_nf4.h"

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/quant/nf4.h"
#include "nibble/quant/parallel.h"

namespace nibble {
namespace {

// A piece stays in the second-level cache between reading and quantising; both figures are in values.
constexpr std::size_t piece_values = std::size_t{1} << 19;
constexpr std::size_t least_values_a_thread = std::size_t{1} << 16;

}  // namespace

void read_as_nf4(const Checkpoint::Entry& tensor, std::span<std::uint8_t> packed, std::span<float> absmax,
                 unsigned threads) {
  const auto& info = *tensor.tensor;
  const std::string name = fmt::format("{}: {}", tensor.file->path().string(), info.name);
  check<DataError>(info.dtype == DType::f32 || info.dtype == DType::f16 || info.dtype == DType::bf16, name,
                   "The tensor is {}; F32, F16 and BF16 can be quantised.", info.dtype_name);
  const auto dtype = *info.dtype;
  const std::size_t count = info.numel();
  check(packed.size() == nf4_packed_bytes(count) && absmax.size() == nf4_blocks(count), name,
        "{} values need {} packed bytes and {} scales; there is room for {} and {}.", count, nf4_packed_bytes(count),
        nf4_blocks(count), packed.size(), absmax.size());

  const auto quantize_blocks = [&](std::size_t first_block, std::size_t last_block) {
    const std::size_t end = std::min(count, last_block * nf4_block);
    std::vector<std::byte> buffer(std::min(piece_values, end - first_block * nf4_block) * size_of(dtype));
    for (std::size_t begin = first_block * nf4_block; begin < end; begin += piece_values) {
      const std::size_t values = std::min(piece_values, end - begin);
      const auto bytes = std::span(buffer).first(values * size_of(dtype));
      tensor.file->read(info, begin * size_of(dtype), bytes);
      nf4_quantize(dtype, bytes, packed.subspan(begin / 2, nf4_packed_bytes(values)),
                   absmax.subspan(begin / nf4_block, nf4_blocks(values)),
                   {.threads = 1, .name = name, .first_index = begin});
    }
  };
  parallel_ranges(absmax.size(), least_values_a_thread / nf4_block, threads, quantize_blocks);
}

}  // namespace nibble
