#pragma once

#include <vector>

#include "nibble/quant/nf4.h"

namespace nibble::test {

struct Quantized {
  std::vector<std::uint8_t> packed;
  std::vector<float> absmax;
};

inline Quantized quantize(DType dtype, std::span<const std::byte> bytes, const Nf4Options& options = {}) {
  const auto count = bytes.size() / size_of(dtype);
  Quantized result{std::vector<std::uint8_t>(nf4_packed_bytes(count)),
                   std::vector<float>(nf4_blocks(count, options.block_size))};
  nf4_quantize(dtype, bytes, result.packed, result.absmax, options);
  return result;
}

inline Quantized quantize(const std::vector<float>& values, const Nf4Options& options = {}) {
  return quantize(DType::f32, std::as_bytes(std::span(values)), options);
}

// Those that this processor has, the plain one first.
inline std::vector<Simd> all_simd() {
  std::vector<Simd> all;
  for (const auto simd : {Simd::scalar, Simd::avx2, Simd::avx512}) {
    if (simd <= best_simd()) all.push_back(simd);
  }
  return all;
}

}  // namespace nibble::test
