#pragma once

#include <cstdint>
#include <span>

#include "nibble/quant/nf4.h"

namespace nibble {

// out[i] = values[i] * factor as IEEE binary16, bit for bit as f32_to_f16 (nibble/base/half.h) rounds, by the processor's own
// conversion where it has one.
void to_f16(std::span<const float> values, float factor, std::span<std::uint16_t> out, Simd simd = best_simd());

}  // namespace nibble
