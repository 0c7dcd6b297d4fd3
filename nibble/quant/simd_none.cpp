#include "nibble/quant/nf4_kernels.h"

namespace nibble {

Simd best_simd() { return Simd::scalar; }

std::size_t halves_avx2(const float*, std::size_t, float, std::uint16_t*) { return 0; }

bool nf4_encode(DType dtype, const Nf4Blocks& task, Simd) { return nf4_encode_scalar(dtype, task); }

}  // namespace nibble
