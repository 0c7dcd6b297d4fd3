#include "nibble/quant/nf4_kernels.h"

namespace nibble {

Simd best_simd() { return Simd::scalar; }

bool nf4_encode(DType dtype, const Nf4Blocks& task, Simd) { return nf4_encode_scalar(dtype, task); }

}  // namespace nibble
