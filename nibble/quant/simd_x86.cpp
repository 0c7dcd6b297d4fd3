#include "nibble/quant/nf4_kernels.h"

namespace nibble {

Simd best_simd() {
  static const Simd best = [] {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) return Simd::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) return Simd::avx2;
    return Simd::scalar;
  }();
  return best;
}

bool nf4_encode(DType dtype, const Nf4Blocks& task, Simd simd) {
  switch (simd) {
    case Simd::avx512: return nf4_encode_avx512(dtype, task);
    case Simd::avx2: return nf4_encode_avx2(dtype, task);
    case Simd::scalar: break;
  }
  return nf4_encode_scalar(dtype, task);
}

}  // namespace nibble
