#include <immintrin.h>

#include <algorithm>
#include <bit>

#include "nibble/quant/nf4_kernels.h"

// Every function here has the attribute that allows these instructions; nothing else of the program does, so it runs
// anywhere.

namespace nibble {
namespace {

template <DType dtype>
[[gnu::target("avx512f,avx512bw")]] inline __m512 load16(const std::byte* source, std::size_t index) {
  if constexpr (dtype == DType::f32) {
    return _mm512_loadu_ps(source + 4 * index);
  } else {
    const auto half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + 2 * index));
    if constexpr (dtype == DType::f16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
}

// Magnitudes compare as integers do, and those that are not finite come last.
template <DType dtype>
[[gnu::target("avx512f,avx512bw")]] inline std::uint32_t largest_bits(const std::byte* block, std::size_t block_size) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i largest = _mm512_setzero_si512();
  for (std::size_t i = 0; i < block_size; i += 16) {
    largest = _mm512_max_epu32(largest, _mm512_and_si512(_mm512_castps_si512(load16<dtype>(block, i)), magnitude));
  }
  return _mm512_reduce_max_epu32(largest);
}

// 16 + code of sixteen values: four steps down the tree, which fills one register.
[[gnu::target("avx512f,avx512bw")]] inline __m512i tree_search(__m512 x, __m512 tree) {
  const __m512i one = _mm512_set1_epi32(1);
  __m512i at = one;
  for (int level = 0; level < 4; ++level) {
    const __mmask16 above = _mm512_cmp_ps_mask(x, _mm512_permutexvar_ps(at, tree), _CMP_GT_OQ);
    at = _mm512_add_epi32(at, at);
    at = _mm512_mask_add_epi32(at, above, at, one);
  }
  return at;
}

// 32 values to 16 bytes.
template <DType dtype>
[[gnu::target("avx512f,avx512bw")]] inline __m128i encode32(const std::byte* source, std::size_t index, __m512 scale,
                                                            __m512 tree, __m256i weights) {
  const __m512i first = tree_search(_mm512_mul_ps(load16<dtype>(source, index), scale), tree);
  const __m512i second = tree_search(_mm512_mul_ps(load16<dtype>(source, index + 16), scale), tree);
  const __m256i bytes = _mm256_set_m128i(_mm512_cvtepi32_epi8(second), _mm512_cvtepi32_epi8(first));
  const __m256i low_halves = _mm256_and_si256(bytes, _mm256_set1_epi8(15));
  const __m256i pairs = _mm256_maddubs_epi16(low_halves, weights);  // first * 16 + second, or first + second * 16
  return _mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
}

template <DType dtype>
[[gnu::target("avx512f,avx512bw")]] bool encode(const Nf4Blocks& task) {
  const __m256i weights = _mm256_set1_epi16(task.order == NibbleOrder::high_first ? 0x0110 : 0x1001);
  const __m512 tree = _mm512_load_ps(nf4_tree);
  std::uint32_t largest_of_all = 0;
  for (std::size_t b = 0; b < task.blocks; ++b) {
    const std::byte* block = task.source + b * task.block_size * size_of(dtype);
    const auto bits = largest_bits<dtype>(block, task.block_size);
    largest_of_all = std::max(largest_of_all, bits);
    const auto absmax = std::bit_cast<float>(bits);
    task.absmax[b] = absmax;
    const __m512 scale = _mm512_set1_ps(1.0f / std::max(absmax, nf4_smallest_absmax));
    auto* out = task.packed + b * task.block_size / 2;
    for (std::size_t i = 0; i < task.block_size; i += 32) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i / 2), encode32<dtype>(block, i, scale, tree, weights));
    }
  }
  return largest_of_all < 0x7f800000u;
}

}  // namespace

bool nf4_encode_avx512(DType dtype, const Nf4Blocks& task) {
  if (dtype == DType::f32) return encode<DType::f32>(task);
  return dtype == DType::f16 ? encode<DType::f16>(task) : encode<DType::bf16>(task);
}

}  // namespace nibble
