#include <immintrin.h>

#include <algorithm>
#include <bit>

#include "nibble/quant/nf4_kernels.h"

// Every function here has the attribute that allows these instructions; nothing else of the program does, so it runs
// anywhere.

namespace nibble {
namespace {

template <DType dtype>
[[gnu::target("avx2,f16c")]] inline __m256 load8(const std::byte* source, std::size_t index) {
  if constexpr (dtype == DType::f32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(source) + index);
  } else {
    const auto half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + 2 * index));
    if constexpr (dtype == DType::f16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
}

// Magnitudes compare as integers do, and those that are not finite come last.
template <DType dtype>
[[gnu::target("avx2,f16c")]] inline std::uint32_t largest_bits(const std::byte* block, std::size_t block_size) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i largest = _mm256_setzero_si256();
  for (std::size_t i = 0; i < block_size; i += 8) {
    largest = _mm256_max_epu32(largest, _mm256_and_si256(_mm256_castps_si256(load8<dtype>(block, i)), magnitude));
  }
  __m128i half = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0xb1));
  return static_cast<std::uint32_t>(_mm_cvtsi128_si32(half));
}

// 16 + code of eight values: four steps down the tree, of which the last level is the upper half of the array.
[[gnu::target("avx2,f16c")]] inline __m256i tree_search(__m256 x, __m256 upper_levels, __m256 last_level) {
  __m256i at = _mm256_set1_epi32(1);
  for (int level = 0; level < 4; ++level) {
    const __m256 threshold = _mm256_permutevar8x32_ps(level < 3 ? upper_levels : last_level, at);
    const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(x, threshold, _CMP_GT_OQ));  // -1 where it holds
    at = _mm256_sub_epi32(_mm256_add_epi32(at, at), above);
  }
  return at;
}

// 32 values to 16 bytes.
template <DType dtype>
[[gnu::target("avx2,f16c")]] inline __m128i encode32(const std::byte* source, std::size_t index, __m256 scale,
                                                     __m256i weights) {
  const __m256 upper_levels = _mm256_load_ps(nf4_tree);
  const __m256 last_level = _mm256_load_ps(nf4_tree + 8);
  __m256i codes[4];
  for (std::size_t i = 0; i < 4; ++i) {
    codes[i] = tree_search(_mm256_mul_ps(load8<dtype>(source, index + 8 * i), scale), upper_levels, last_level);
  }
  // Packing works on each half of a register alone, hence the order of four-byte groups at the end.
  const __m256i bytes =
      _mm256_packus_epi16(_mm256_packus_epi32(codes[0], codes[1]), _mm256_packus_epi32(codes[2], codes[3]));
  const __m256i in_order = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  const __m256i low_halves = _mm256_and_si256(in_order, _mm256_set1_epi8(15));
  const __m256i pairs = _mm256_maddubs_epi16(low_halves, weights);  // first * 16 + second, or first + second * 16
  return _mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
}

template <DType dtype>
[[gnu::target("avx2,f16c")]] bool encode(const Nf4Blocks& task) {
  const __m256i weights = _mm256_set1_epi16(task.order == NibbleOrder::high_first ? 0x0110 : 0x1001);
  std::uint32_t largest_of_all = 0;
  for (std::size_t b = 0; b < task.blocks; ++b) {
    const std::byte* block = task.source + b * task.block_size * size_of(dtype);
    const auto bits = largest_bits<dtype>(block, task.block_size);
    largest_of_all = std::max(largest_of_all, bits);
    const auto absmax = std::bit_cast<float>(bits);
    task.absmax[b] = absmax;
    const __m256 scale = _mm256_set1_ps(1.0f / std::max(absmax, nf4_smallest_absmax));
    auto* out = task.packed + b * task.block_size / 2;
    for (std::size_t i = 0; i < task.block_size; i += 32) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i / 2), encode32<dtype>(block, i, scale, weights));
    }
  }
  return largest_of_all < 0x7f800000u;
}

}  // namespace

[[gnu::target("avx2,f16c")]] std::size_t halves_avx2(const float* values, std::size_t count, float factor, std::uint16_t* out) {
  const __m256 factors = _mm256_set1_ps(factor);
  const std::size_t whole = count / 8 * 8;
  for (std::size_t i = 0; i < whole; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_mul_ps(_mm256_loadu_ps(values + i), factors), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), halves);
  }
  return whole;
}

bool nf4_encode_avx2(DType dtype, const Nf4Blocks& task) {
  if (dtype == DType::f32) return encode<DType::f32>(task);
  return dtype == DType::f16 ? encode<DType::f16>(task) : encode<DType::bf16>(task);
}

}  // namespace nibble
