#pragma once

#include <array>
#include <cstdint>

namespace nibble {

// Codes of 8 bits for values that share a largest magnitude, as bitsandbytes has them (create_dynamic_map; Dettmers et al.
// 2022, "8-bit Optimizers via Block-wise Quantization"): seven decades, each with twice the points of the one below.
// Rising; 0 and 1 are in both.
const std::array<float, 256>& dynamic_map();           // signed: from about -0.993
const std::array<float, 256>& unsigned_dynamic_map();  // from 0

// The code of the nearest entry of a rising map, a tie going to the lower one.
std::uint8_t nearest_code(const std::array<float, 256>& map, float value);

}  // namespace nibble
