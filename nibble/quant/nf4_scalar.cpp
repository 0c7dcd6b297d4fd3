#include <algorithm>
#include <cmath>
#include <cstring>

#include "nibble/base/half.h"
#include "nibble/quant/nf4_kernels.h"
#include "nibble/quant/nf4_table.h"

namespace nibble {

alignas(64) const float nf4_tree[16] = {
    0,
    nf4_thresholds[7],
    nf4_thresholds[3],
    nf4_thresholds[11],
    nf4_thresholds[1],
    nf4_thresholds[5],
    nf4_thresholds[9],
    nf4_thresholds[13],
    nf4_thresholds[0],
    nf4_thresholds[2],
    nf4_thresholds[4],
    nf4_thresholds[6],
    nf4_thresholds[8],
    nf4_thresholds[10],
    nf4_thresholds[12],
    nf4_thresholds[14],
};

float nf4_load(DType dtype, const std::byte* source, std::size_t index) {
  if (dtype == DType::f32) {
    float value = 0;
    std::memcpy(&value, source + 4 * index, sizeof value);
    return value;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, source + 2 * index, sizeof bits);
  return dtype == DType::f16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

bool nf4_encode_short_block(DType dtype, const std::byte* source, std::size_t count, std::uint8_t* packed,
                            float* absmax, NibbleOrder order) {
  float largest = 0;
  bool finite = true;
  for (std::size_t i = 0; i < count; ++i) {
    const float value = nf4_load(dtype, source, i);
    finite = finite && std::isfinite(value);
    largest = std::max(largest, std::abs(value));
  }
  *absmax = largest;
  const float scale = 1.0f / std::max(largest, nf4_smallest_absmax);
  const int first_shift = order == NibbleOrder::high_first ? 4 : 0;
  std::fill_n(packed, nf4_packed_bytes(count), std::uint8_t{0});
  for (std::size_t i = 0; i < count; ++i) {
    const auto code = nf4_code(nf4_load(dtype, source, i) * scale);
    const int shift = i % 2 == 0 ? first_shift : 4 - first_shift;
    packed[i / 2] = static_cast<std::uint8_t>(packed[i / 2] | (code << shift));
  }
  return finite;
}

bool nf4_encode_scalar(DType dtype, const Nf4Blocks& task) {
  const std::size_t block_bytes = task.block_size * size_of(dtype);
  bool finite = true;
  for (std::size_t b = 0; b < task.blocks; ++b) {
    finite &= nf4_encode_short_block(dtype, task.source + b * block_bytes, task.block_size,
                                     task.packed + b * task.block_size / 2, task.absmax + b, task.order);
  }
  return finite;
}

}  // namespace nibble
