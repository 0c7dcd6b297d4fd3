#include "nibble/quant/halves.h"

#include "nibble/base/error.h"
#include "nibble/base/half.h"
#include "nibble/quant/nf4_kernels.h"

namespace nibble {

void to_f16(std::span<const float> values, float factor, std::span<std::uint16_t> out, Simd simd) {
  check(values.size() == out.size(), "to_f16", "There is room for {} of {} values.", out.size(), values.size());
  const std::size_t done = simd == Simd::scalar ? 0 : halves_avx2(values.data(), values.size(), factor, out.data());
  for (std::size_t i = done; i < values.size(); ++i) out[i] = f32_to_f16(values[i] * factor);
}

}  // namespace nibble
