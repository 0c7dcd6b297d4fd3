#pragma once

#include <array>
#include <cstdint>

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

// That of FP4 (bitsandbytes functional.py, get_4bit_type): a sign above three bits, divided by the largest. Both zeros are +0.
inline constexpr std::array<float, 16> fp4_codes = {
    0.0f, 0.0052083334885537624f, 0.6666666865348816f, 1.0f, 0.3333333432674408f, 0.5f, 0.1666666716337204f, 0.25f,
    0.0f, -0.0052083334885537624f, -0.6666666865348816f, -1.0f, -0.3333333432674408f, -0.5f, -0.1666666716337204f, -0.25f,
};

// What the four bits of a matrix stand for. Weights are quantised to NF4; FP4 is what bitsandbytes' folders may hold.
enum class CodeBook : std::uint8_t { nf4, fp4 };

constexpr const std::array<float, 16>& codes_of(CodeBook book) { return book == CodeBook::fp4 ? fp4_codes : nf4_codes; }
constexpr const char* name_of(CodeBook book) { return book == CodeBook::fp4 ? "FP4" : "NF4"; }

inline constexpr unsigned nf4_block = 64;  // elements that share one absmax

}  // namespace nibble
