#pragma once

#include <array>

namespace nibble {

// The code book of NF4 (QLoRA, Dettmers et al. 2023, appendix E; bitsandbytes csrc/kernels.cu): value = code * absmax of
// its block of 64. Each is an exact f32.
inline constexpr std::array<float, 16> nf4_codes = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

inline constexpr unsigned nf4_block = 64;  // elements that share one absmax

}  // namespace nibble
